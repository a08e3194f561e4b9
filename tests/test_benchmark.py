"""The benchmark's rows at a tiny size, each a whole measurement."""

import json
import os
import pathlib
import signal
import sys
import time
import types

import jax
import narrow
import pytest

from experiments import benchmark
from jaxstyle.errors import UserError


def rows(*flags):
    done = narrow.run("experiments.benchmark", "--sizes=32", "--repeats=1", *flags, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_row_is_a_line_of_json_that_says_what_was_measured(tmp_path):
    peer = tmp_path / "python"  # PyTorch's, of which it is asked what it would print
    seconds = {"channels_last": [1000, 3000, 2000], "contiguous": [1500, 1500, 9000]}
    peer.write_text(
        f"#!{sys.executable}\nimport json, sys\nif sys.argv[1] != '-c':\n"
        f"    script, size, repeats, layout = sys.argv[1:]\n"
        f"    assert (script[-13:], size, repeats) == ('torch_peer.py', '32', '1')\n"
        f"    print(json.dumps({{'seconds': {seconds}[layout], 'peak_bytes': len(layout)}}))\n"
    )
    peer.chmod(0o755)
    found = rows(
        *("--convolutions=direct", "--batches=2", "--strips=2", "--layers", "--optimizers=adam"),
        *("--vs_torch", "--rounds=1", f"--torch_python={peer}"),
    )
    steps = [row for row in found if row["row"] == "step"]
    assert [(row["batch"], row["strips"], row["remat"]) for row in steps] == [(2, 2, False)]
    for row in steps:
        assert 0 < row["min_s"] <= row["median_s"] < 60
        assert row["compile_s"] > 0
        assert 0 < row["estimated_bytes"] < row["peak_bytes"]
    layers = {row["layer"] for row in found if row["row"] == "layer"}
    assert {"block1_conv1", "block5_conv1", "block2_pool", "block3_gram"} <= layers
    (adam,) = (row for row in found if row["row"] == "optimizer")
    assert adam["evaluations_a_step"] == 1
    (beside,) = (row for row in found if row["row"] == "vs_torch")
    better = {"median_s": 1500, "min_s": 1500, "peak_bytes": len("contiguous"), "layout": "contiguous"}
    assert beside["torch"] == better
    assert beside["ratio"] == beside["ours"]["median_s"] / 1500


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--sizes=8", "--sizes=8: must be 16 or more"),
        ("--sizes=a", "--sizes=a: must be whole numbers"),
        ("--convolutions=fft", "--convolutions=fft: must be of auto, direct, winograd, bfloat16"),
        ("--batches=0", "--batches=0: must be whole numbers of 1 or more"),
        ("--sizes=", "--sizes=: must be whole numbers of 1 or more"),
        ("--convolutions=", "--convolutions=: must be of auto, direct, winograd, bfloat16"),
        ("--optimizers=adam:lr=1", "--optimizers=adam:lr=1: adam has no 'lr'"),
        ("--vs_torch --torch_python=/nobody", "--torch_python=/nobody: cannot run PyTorch's step: "),
    ],
)
def test_bad_flags_are_refused_in_one_line(flag, words):
    assert words in narrow.refused("experiments.benchmark", *flag.split())


def test_on_a_gpu_the_peak_is_of_its_memory(monkeypatch):
    card = types.SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 1, "peak_bytes_in_use": 7})
    assert benchmark.peak_bytes() > 2**20
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    assert benchmark.peak_bytes() == 7


def test_a_row_whose_process_is_killed_is_told_in_one_line():
    with pytest.raises(UserError, match="--sizes: what measured a row was killed"):
        benchmark.alone(os._exit, 1)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a list of processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_measures_ends_with_the_command_that_was_stopped(number):
    process = narrow.Process("experiments.benchmark", "--sizes=32", "--repeats=1")
    listed = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    begun = process.until(lambda: (found := listed.read_text().split()) and len(found) > 1 and found)
    process.until(lambda: any("jaxlib" in pathlib.Path(f"/proc/{each}/maps").read_text() for each in begun))
    process.send_signal(number)
    process.wait()
    until = time.monotonic() + 60
    while left := [each for each in begun if os.path.exists(f"/proc/{each}")]:
        if time.monotonic() > until:
            for each in left:
                os.kill(int(each), signal.SIGKILL)
            pytest.fail("processes that nobody waits for")
        time.sleep(0.1)
    assert process.communicate()[0] == ""  # nor is there one that holds the pipe
