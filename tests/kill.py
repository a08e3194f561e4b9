"""Kills runs at random moments, runs the same command again, and compares what comes of it.

    python tests/kill.py --kills=20

The full form, on VGG16: as many kills for each optimizer of `stylize`, for three scales and for a folder of two
photos, and thrice as many for `compare`, which has all three optimizers as arms, and for `compare` whose arms are
jobs: these are killed with it, or not; a JSON line each.
`tests/test_kill.py` is the short form.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
OPTIMIZERS = ("adam", "lbfgs", "scipy-lbfgs")


def make_pictures(folder: pathlib.Path) -> tuple[str, str]:
    """Flags that name a photo and a style picture, of smooth noise."""
    rng = np.random.default_rng(0)
    for name in ("content", "style"):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        noise.resize((64, 48)).save(folder / f"{name}.png")
    return f"--content={folder / 'content.png'}", f"--style={folder / 'style.png'}"


def results(workdir: pathlib.Path) -> dict[str, bytes]:
    """By name, the bytes of each picture and of each table but for its column `seconds`."""
    found = {}
    for path in sorted([*workdir.rglob("image.png"), *workdir.rglob("metrics.csv")]):
        data = path.read_bytes()
        if path.suffix == ".csv":
            rows = [line.split(b",") for line in data.splitlines()]
            data = b"\n".join(b",".join(row[:2] + row[3:]) for row in rows)
        found[str(path.relative_to(workdir))] = data
    return found


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Drafts and checkpoints, of which an ended run has none."""
    return [
        str(path.relative_to(workdir))
        for path in workdir.rglob("*")
        if path.name.endswith(".partial") or path.parent.name == "checkpoints"
    ]


def checkpoints(workdir: pathlib.Path) -> set[pathlib.Path]:
    """The folders of checkpoints, drafts among them. A process may be changing them: nothing in them is opened."""
    found = set()
    for folder in (
        workdir / "checkpoints",
        *workdir.glob("arms/*/checkpoints"),
        *workdir.glob("*.png/checkpoints"),
    ):
        with contextlib.suppress(FileNotFoundError):
            found |= set(folder.iterdir())
    return found


def moment(workdir: pathlib.Path) -> str:
    """What a killed process was doing, from what it left."""
    names = [path.name for path in checkpoints(workdir)]
    if not all(name.isdecimal() for name in names):
        return "while a checkpoint was written"
    return "between checkpoints" if names else "without a checkpoint"


def await_checkpoint(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Returns when a process writes a checkpoint or ends."""
    before = checkpoints(workdir)
    while process.poll() is None and checkpoints(workdir) <= before:
        time.sleep(0.01)


def check(
    launch: Callable[..., subprocess.Popen], folder: pathlib.Path, kills: int, seed: int = 0
) -> dict[str, int]:
    """Kills a command at `kills` random moments, and asserts that each run ends as an uninterrupted one.

    Args:
      launch: starts the command with another flag, and `stderr` and `start_new_session` as `Popen` takes them.
      folder: to work in.
      kills: processes to kill, over as many runs as it takes.
      seed: of the moments.

    Returns:
      The number of runs, and of kills by what the process was doing.
    """
    rng = random.Random(seed)

    folder.mkdir(exist_ok=True)
    said = folder / "errors.txt"  # no pipe, which jobs that outlive their parent would hold open

    def start(workdir: pathlib.Path) -> subprocess.Popen:
        with said.open("w") as errors:
            return launch(f"--workdir={workdir}", stderr=errors, start_new_session=True)

    def end(process: subprocess.Popen) -> None:
        process.wait()
        assert process.returncode == 0, said.read_text()
        assert "Traceback" not in said.read_text(), said.read_text()

    end(start(folder / "compiling"))
    begun = time.monotonic()
    process = start(folder / "whole")
    await_checkpoint(process, folder / "whole")
    first = time.monotonic()
    end(process)
    ended = time.monotonic()
    expected = results(folder / "whole")
    assert results(folder / "compiling") == expected
    counts = {"runs": 0}
    while kills:
        counts["runs"] += 1
        workdir = folder / f"killed{counts['runs']}"
        finished = False
        while kills and not finished:
            process = start(workdir)
            # Half of the moments after a checkpoint, since starting takes most of a short run.
            if kills % 2:
                await_checkpoint(process, workdir)
            try:
                process.wait(rng.uniform(0, ended - (first if kills % 2 else begun)))
                assert process.returncode == 0, said.read_text()
                finished = True
            except subprocess.TimeoutExpired:
                # With all that it has started, or alone, so that this goes on.
                (os.killpg if rng.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
                process.wait()
                kills -= 1
                what = moment(workdir)
                counts[what] = counts.get(what, 0) + 1
        if not finished:
            end(start(workdir))
        assert results(workdir) == expected, f"{workdir} differs"
        assert not leftovers(workdir), leftovers(workdir)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shared = (
            *("--size=64", "--steps=30", "--checkpoint_seconds=0"),
            *(f"--compilation_cache={folder / 'cache'}", *make_pictures(folder)),
        )
        batch = folder / "batch"
        batch.mkdir()
        for photo in ("a.png", "b.png"):
            shutil.copy(folder / "content.png", batch / photo)
        one, all_three = arguments.kills, [f"--optimizer={optimizer}" for optimizer in OPTIMIZERS]
        plans = [
            *(("stylize", [optimizer], one) for optimizer in all_three),
            ("stylize", ["--scales=3"], one),
            ("stylize", [f"--content={batch}", "--steps=15"], one),
            ("compare", all_three, 3 * one),
            ("compare", [*all_three, "--launcher=local"], 3 * one),
        ]
        for number, (command, own, kills) in enumerate(plans):
            workdir = folder / f"{number}"
            flags = [sys.executable, "-m", f"experiments.{command}", *shared, *own]

            def launch(flag: str, flags: Sequence[str] = flags, **how: Any) -> subprocess.Popen:
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                return subprocess.Popen(
                    [*flags, flag], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, **how
                )

            begun = time.monotonic()
            counts = check(launch, workdir, kills, arguments.seed)
            seconds = round(time.monotonic() - begun)
            print(
                json.dumps({"command": command, "flags": own} | counts | {"seconds": seconds}),
                flush=True,
            )


if __name__ == "__main__":
    main()
