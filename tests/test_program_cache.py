"""The folder of compiled programs: what is damaged there is told in one line, compiled again and kept whole."""

import warnings

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import program_cache


@pytest.fixture
def folder(tmp_path):
    """One that JAX keeps its programs in, as commands set it up."""
    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with warnings.catch_warnings():
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        program_cache.watch(str(tmp_path))
        yield tmp_path
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def compute(*sizes):
    def twice(x):
        return 2 * x

    jax.clear_caches()  # as a new process has none
    for size in sizes:
        assert jax.jit(twice)(np.ones(size)).sum() == 2 * size


def programs(folder):
    return {path.name: path.stat().st_size for path in folder.glob("jit_twice-*-cache")}


def test_a_program_that_was_cut_short_is_told_once_and_kept_whole_again(folder, capfd):
    compute(3, 4)
    whole = programs(folder)
    assert len(whole) == 2
    for name in whole:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    compute(3, 4)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"--compilation_cache={folder}: a damaged program is there; it is compiled again ("
    )
    assert programs(folder).keys() == whole.keys()
    assert min(programs(folder).values()) > 100
    compute(3, 4)
    assert capfd.readouterr().err == ""


def test_a_program_that_cannot_be_written_is_told_once_and_leaves_nothing_behind(folder, capfd):
    resource = pytest.importorskip("resource", reason="a limit to files is Unix's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        compute(3, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"--compilation_cache={folder}: cannot write there; compiled programs are not kept ("
    )
    assert not programs(folder)


def test_other_warnings_are_shown_as_before(tmp_path):
    with warnings.catch_warnings(record=True, action="always") as shown:
        program_cache.watch(str(tmp_path))
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in shown] == ["something else"]
