"""Checkpoints: what is read is what was written, to the bit, or it is not read."""

import contextlib
import errno
import logging
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.runs.checkpoints import Checkpoints

ROWS = np.array([[0.0, np.nan], [1.0, 1 / 3]])


def state(step=0):
    """Of every kind of array that an optimizer has."""
    return {
        "image": jnp.arange(24, dtype=jnp.float32).reshape(2, 4, 3) / 7 + step,
        "step": jnp.int32(step),
        "flag": jnp.bool_(True),
        "nothing": jnp.zeros((0, 3)),
        "double": np.array(1 / 3 + step),  # SciPy's, beyond JAX's precision
        "history": jnp.full((3, 2), 1 / 3 + step, jnp.bfloat16),
        "key": jax.random.key(step),
    }


def bits(tree):
    leaves = [
        leaf if not str(leaf.dtype).startswith("key") else jax.random.key_data(leaf)
        for _, leaf in sorted(tree.items())
    ]
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2 and 3; that of step 1 is gone."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), ROWS + step)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]
    return tmp_path


def restored_step(folder):
    found = Checkpoints(folder).restore(lambda step: state())
    return found and int(found[0]["step"])


def test_the_newest_comes_back_to_the_bit(saved):
    found, rows = Checkpoints(saved).restore(
        lambda step: jax.eval_shape(lambda: state()) | {"double": state()["double"]}
    )
    assert found.keys() == state().keys()
    assert bits(found) == bits(state(3))
    assert rows.tobytes() == (ROWS + 3).tobytes()


def flip(where):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(where * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage", [flip(0), flip(0.5), flip(0.9), flip(1), lambda path: os.truncate(path, 1), os.remove]
)
def test_a_damaged_newest_gives_way_to_the_one_before_with_a_warning(saved, caplog, damage):
    files = [
        path for path in (saved / "checkpoints" / "3").rglob("*") if path.is_file() and path.stat().st_size
    ]
    assert {path.name for path in files} == {"arrays.npz", "sha256"}
    for file in files:
        kept = file.read_bytes()
        damage(file)
        shutil.copytree(saved, saved / "copy")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert restored_step(saved / "copy") == 2, file
        assert "checkpoint 3 is damaged" in caplog.text
        shutil.rmtree(saved / "copy")
        file.write_bytes(kept)
    assert restored_step(saved) == 3


def test_one_that_cannot_be_read_now_is_not_damaged(saved, monkeypatch):
    checkpoints = Checkpoints(saved)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as now:
        now.setattr(np, "load", refuse)
        with pytest.raises(PermissionError):
            checkpoints.restore(lambda step: state())
    assert restored_step(saved) == 3


def test_without_a_whole_one_there_is_none(saved, caplog):
    for step in ("2", "3"):
        (saved / "checkpoints" / step / "arrays.npz").unlink()
    assert Checkpoints(saved).restore(lambda step: state()) is None
    assert caplog.text.count("damaged") == 2
    assert Checkpoints(saved / "new").restore(lambda step: state()) is None


def test_a_state_of_another_shape_is_not_taken(saved):
    assert Checkpoints(saved).restore(lambda step: state() | {"image": jnp.zeros((2, 5, 3))}) is None


def test_drafts_go_and_are_never_read(saved):
    shutil.copytree(saved / "checkpoints" / "3", saved / "checkpoints" / "new")
    shutil.rmtree(saved / "checkpoints" / "3")
    assert restored_step(saved) == 2
    assert os.listdir(saved / "checkpoints") == ["2"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_the_system_and_what_is_there_stays(saved, monkeypatch, code):
    checkpoints = Checkpoints(saved)

    def full(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as now:
        now.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=os.strerror(code)):
            checkpoints.save(4, state(4), ROWS)
    assert sorted(os.listdir(saved / "checkpoints")) == ["2", "3"]
    assert restored_step(saved) == 3
    checkpoints.save(4, state(4), ROWS)
    assert restored_step(saved) == 4


def test_a_file_that_may_not_grow_is_an_error_of_the_system(saved):
    """The system's own limit, met while the arrays are written."""
    large = {"image": np.zeros((256, 256, 3))}
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), limited(2**16):
        Checkpoints(saved).save(4, large, ROWS)
    assert restored_step(saved) == 3


@contextlib.contextmanager
def limited(size):
    """Lets no file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_clearing_leaves_none(saved):
    checkpoints = Checkpoints(saved)
    checkpoints.clear()
    assert os.listdir(saved / "checkpoints") == []
