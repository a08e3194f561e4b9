"""Runs of several processes on the loopback: the picture of one process, a run that goes on with fewer, and deaths.

    python tests/together.py --processes=2,4 --srun

A JSON line for each; with `--srun` also of two that a SLURM of this machine starts, see `tests/slurm.py`. The network
is narrow and the pictures small; a death that JAX is to notice takes half a minute.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

import narrow
import numpy as np
import slurm
from kill import leftovers, make_pictures
from PIL import Image

from jaxstyle.runs import journal

#: Steps of a run that is waited for, and of one that does not come to its end.
SHORT, LONG = 12, 100_000


def free_port() -> int:
    with contextlib.closing(socket.create_server(("localhost", 0))) as taken:
        return taken.getsockname()[1]


class Company:
    """The same command in several processes."""

    def __init__(self, count: int, module: str, *arguments: str):
        port = free_port()
        where = f"--coordinator=localhost:{port}", f"--processes={count}"
        self.members = [
            narrow.Process(module, *arguments, *where, f"--process={index}") for index in range(count)
        ]

    def end(self) -> list[tuple[int, str, str]]:
        """Of each its status and what it said, once all have ended."""
        said = [member.communicate() for member in self.members]
        return [(member.returncode, *texts) for member, texts in zip(self.members, said, strict=True)]

    def run(self) -> None:
        """Waits for an end that is to be a good one."""
        for status, _, errors in self.end():
            assert status == 0, errors


def arguments(folder: pathlib.Path, pictures: Sequence[str], steps: int, *more: str) -> list[str]:
    """Flags of a run of one size, whose rows do not divide. Few layers compile in a moment."""
    given = (
        *("--size=64x51", "--scales=1", "--parametrization=fourier", "--optimizer=adam"),
        *("--content_layer=block2_conv1", "--style_layer=block1_conv1", "--style_layer=block2_conv1"),
        *(f"--steps={steps}", "--checkpoint_seconds=0", f"--workdir={folder}"),
    )
    return [*pictures, *given, *more]


def rows(folder: pathlib.Path) -> np.ndarray:
    """Of a run that is on its way too, of which there may be none yet."""
    path = folder / "metrics.csv"
    return journal.read_metrics(path) if path.exists() else np.empty((0, len(journal.COLUMNS)))


def await_steps(folder: pathlib.Path, company: Company, steps: int = 3) -> None:
    while len(rows(folder)) < steps and all(member.poll() is None for member in company.members):
        time.sleep(0.05)


def differences(folder: pathlib.Path, like: pathlib.Path) -> dict[str, float]:
    """How far pictures are from each other at most, in levels, and losses, relative to one another."""
    images = [np.asarray(Image.open(each / "image.png")).astype(int) for each in (folder, like)]
    losses = [rows(each)[:, journal.COLUMNS.index("total")] for each in (folder, like)]
    return {
        "levels": int(np.abs(images[0] - images[1]).max()),
        "loss": float(np.abs(losses[0] / losses[1] - 1).max()),
    }


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def compare_pictures(folder: pathlib.Path, pictures: Sequence[str], count: int) -> None:
    for optimizer in ("adam", "lbfgs"):
        here, there = folder / f"{optimizer}-{count}", folder / f"{optimizer}-{count}-one"
        Company(
            count, "experiments.stylize", *arguments(here, pictures, SHORT, f"--optimizer={optimizer}")
        ).run()
        given = arguments(there, pictures, SHORT, f"--optimizer={optimizer}", f"--devices={count}")
        assert narrow.run("experiments.stylize", *given).returncode == 0
        tell(processes=count, optimizer=optimizer, **differences(here, there))


def resume(folder: pathlib.Path, pictures: Sequence[str], count: int) -> None:
    """Stops a run by SIGTERM to its last process, and goes on with one process."""
    here = folder / f"stopped-{count}"
    company = Company(count, "experiments.stylize", *arguments(here, pictures, 60))
    await_steps(here, company)
    company.members[-1].send_signal(signal.SIGTERM)
    statuses = [status for status, *_ in company.end()]
    before = rows(here)
    done = narrow.run("experiments.stylize", *arguments(here, pictures, 60))
    assert done.returncode == 0, done.stderr
    assert np.array_equal(before, rows(here)[: len(before)])
    differs = [change["differs"] for change in journal.read_manifest(here)["resumed"]]
    tell(
        processes=count, stopped_at=len(before) - 1, statuses=statuses, differs=differs, left=leftovers(here)
    )


def die(folder: pathlib.Path, pictures: Sequence[str], count: int, victim: int) -> None:
    """Kills a process: what the others say, after how many seconds, and from which step the same command goes on."""
    here = folder / f"killed-{count}-{victim}"
    company = Company(count, "experiments.stylize", *arguments(here, pictures, LONG))
    await_steps(here, company)
    company.members[victim].kill()
    begun = time.monotonic()
    ends = company.end()
    seconds = time.monotonic() - begun
    kept = max(int(path.name) for path in (here / "checkpoints").iterdir() if path.name.isdecimal())
    again = Company(count, "experiments.stylize", *arguments(here, pictures, LONG))
    await_steps(here, again, kept + 3)
    after = len(rows(here))
    again.members[0].send_signal(signal.SIGTERM)
    again.end()
    statuses, said = [end[0] for end in ends], [end[2] for end in ends]
    tell(
        processes=count,
        killed=victim,
        seconds=round(seconds, 1),
        statuses=statuses,
        said=said,
        kept=kept,
        after=after,
    )


def start_by_slurm(folder: pathlib.Path, pictures: Sequence[str]) -> None:
    """Two processes that are told nothing of each other by flags."""
    here, there = folder / "srun", folder / "srun-one"
    with slurm.slurm(folder):
        command = narrow.command("experiments.stylize", *arguments(here, pictures, SHORT))
        subprocess.run(**command | {"args": ["srun", "--ntasks=2", *command["args"]]}, check=True)
    narrow.run("experiments.stylize", *arguments(there, pictures, SHORT, "--devices=2"), check=True)
    tell(srun=journal.read_manifest(here)["processes"], **differences(here, there))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--srun", action="store_true")
    given = parser.parse_args()
    counts = [int(text) for text in given.processes.split(",") if text]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures = make_pictures(folder)
        for count in counts:
            compare_pictures(folder, pictures, count)
            resume(folder, pictures, count)
            for victim in (0, count - 1):
                die(folder, pictures, count, victim)
        if given.srun:
            start_by_slurm(folder, pictures)


if __name__ == "__main__":
    main()
