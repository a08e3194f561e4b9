"""The folder of compiled programs: what is there is not traced again; what is damaged is told in one line, compiled
again and kept whole."""

import functools
import itertools
import pathlib
import warnings

import jax
import jax.numpy as jnp
import narrow
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import program_cache
from jaxstyle.losses import objective
from jaxstyle.losses.content import CONTENT_LOSSES
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.optimizers import catalogue


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


def factor(key, traced):
    """A program that calls LAPACK and takes over its argument; `traced` is given the key when it is traced."""

    def root(x):
        traced.append(key)
        return jax.lax.linalg.cholesky(x @ x.T + jnp.eye(3))

    jax.clear_caches()
    lower = functools.partial(jax.jit(root, donate_argnums=0).lower, np.eye(3, dtype=np.float32))
    return program_cache.compiled(key, lower, jax.devices()[:1])(jnp.ones((3, 3)))


def whole(folder):
    return sorted(folder.glob("program-*"))


def test_a_program_that_is_there_is_not_traced_and_has_the_same_bits(folder):
    traced = []
    first, again, other = (factor(key, traced) for key in (("a", 1), ("a", 1), ("a", 2)))
    assert traced == [("a", 1), ("a", 2)]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, other)
    np.testing.assert_allclose(first @ first.T, np.ones((3, 3)) * 3 + np.eye(3), rtol=1e-6)


def test_what_jax_read_is_not_kept_as_xla_cannot_write_it_again(folder):
    traced = []
    factor("a", traced)
    (kept,) = whole(folder)
    kept.unlink()
    factor("a", traced)
    assert len(traced) == 2
    assert not whole(folder)


def forget(folder):
    """Takes out of the folder what JAX would read."""
    for path in folder.glob("jit_*"):
        path.unlink()


def test_other_settings_have_programs_of_their_own(folder, monkeypatch):
    factor("a", [])
    forget(folder)
    monkeypatch.setenv("XLA_FLAGS", "")
    factor("a", [])
    forget(folder)
    with jax.default_matmul_precision("float32"):
        factor("a", [])
    assert len(whole(folder)) == 3


def test_a_program_that_was_damaged_is_told_compiled_again_and_kept_whole(folder, capfd):
    traced = []
    factor("a", traced)
    (kept,) = whole(folder)
    kept.write_bytes(kept.read_bytes()[:-1])
    forget(folder)
    factor("a", traced)
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"--compilation_cache={folder}: a damaged program is there; it is compiled again (it is not whole)"
    )
    assert whole(folder) == [kept]
    factor("a", traced)
    assert len(traced) == 2


def test_a_damaged_program_that_cannot_be_deleted_stops_nothing(folder, monkeypatch):
    factor("a", [])
    (kept,) = whole(folder)
    kept.write_bytes(b"")
    forget(folder)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    traced = []
    factor("a", traced)
    assert traced


def test_a_program_that_xla_cannot_write_is_told_and_stops_nothing(folder, monkeypatch, capfd):
    def refuse(_):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: no such executable is serialized")

    monkeypatch.setattr(program_cache.serialize_executable, "serialize", refuse)
    factor("a", [])
    assert capfd.readouterr().err.startswith(f"--compilation_cache={folder}: cannot write there; ")
    assert not whole(folder)


def test_what_has_no_words_is_traced_each_time(folder):
    traced = []
    factor(object(), traced)
    assert len(traced) == 1
    assert not whole(folder)


def test_all_losses_and_optimizers_are_told_apart():
    forms = [
        objective.GATYS._replace(style=style, content=content, strips=strips)
        for style, content, strips in itertools.product(
            STYLE_LOSSES.values(), CONTENT_LOSSES.values(), (1, 2)
        )
    ]
    texts = "lbfgs", "lbfgs:history_size=5", "lbfgs@fourier", "lbfgs@fourier:exponent=0.25", "adam"
    specs = [catalogue.parse(text) for text in texts]
    values = [*forms, objective.IVANOV2017, *((spec.name, spec.static) for spec in specs)]
    assert len(set(map(program_cache.spelled, values))) == len(values)


def scaled(factor):
    return lambda x: factor * x


def test_functions_are_told_apart_by_what_they_have_from_around_them():
    assert program_cache.spelled(scaled(2)) == program_cache.spelled(scaled(2))
    assert program_cache.spelled(scaled(2)) != program_cache.spelled(scaled(3))
    partial = functools.partial(scaled, 2)
    assert program_cache.spelled(partial) != program_cache.spelled(functools.partial(scaled, 3))


def test_a_run_like_another_traces_nothing_in_another_process(tmp_path):
    flags = "--size=32", "--steps=2", f"--compilation_cache={tmp_path / 'cache'}", *narrow.FEW
    found = []
    for name in ("first", "second"):
        narrow.run("experiments.stylize", *flags, f"--workdir={tmp_path / name}", check=True)
        found.append({path: path.stat().st_mtime_ns for path in whole(tmp_path / "cache")})
    # Those of the targets of style and photo, and of the optimizer's start, step, first state and result.
    assert len(found[0]) == 6
    assert found[0] == found[1]
    pictures = [(tmp_path / name / "image.png").read_bytes() for name in ("first", "second")]
    assert pictures[0] == pictures[1]


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


def test_of_a_folder_that_cannot_be_made_nothing_is_told_to_be_damaged(folder, capfd):
    folder.rmdir()
    folder.touch()
    compute(3)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"--compilation_cache={folder}: cannot write there; ")


def test_other_warnings_are_shown_as_before(tmp_path):
    with warnings.catch_warnings(record=True, action="always") as shown:
        program_cache.watch(str(tmp_path))
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in shown] == ["something else"]
