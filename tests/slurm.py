"""A comparison as an array of a real SLURM, of one node: this machine. Jobs are taken from it, and go on.

    python tests/slurm.py

As root, where Debian's slurm-wlm and munge are installed; takes some minutes. SLURM's daemons listen on the loopback
alone, keep all that they write in a folder of their own, and end with this script.
"""

import contextlib
import json
import os
import pathlib
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from kill import ROOT, leftovers, make_pictures, results

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

ARMS = "adam", "lbfgs", "scipy-lbfgs"


def tell(text: str) -> None:
    print(text, flush=True)


def until(true: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.05)


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[None]:
    """Runs SLURM's daemons, to which this process's commands go."""
    cores, host = os.cpu_count(), platform.node().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, cores=cores))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log"}
    munge |= {"pid-file": "munged.pid", "seed-file": "munged.seed"}
    daemons = [
        ["munged", "--force", "--foreground", *(f"--{name}={folder / path}" for name, path in munge.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    running = []
    try:
        for daemon in daemons:
            with (folder / f"{daemon[0]}.out").open("w") as output:
                running.append(subprocess.Popen(daemon, stdout=output, stderr=output))
            if daemon[0] == "munged":
                until((folder / "munge.socket").exists, "munged")
        until(lambda: idle(folder), "an idle node", 60)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def idle(folder: pathlib.Path) -> bool:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() == "idle"


def newest(arm: pathlib.Path) -> int:
    """The step of an arm's newest checkpoint, 0 where there is none."""
    return max((int(path.name) for path in arm.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def steps(arm: pathlib.Path) -> int:
    return json.loads((arm / "manifest.json").read_text())["steps_done"]


def queue() -> dict[str, str]:
    """States of jobs by their ids."""
    return dict(
        line.split() for line in ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    )


def take(way: list[str], job: str, arm: pathlib.Path) -> int:
    """Has a job that runs be taken from its node: the step of its newest checkpoint."""
    until(lambda: newest(arm) > 0, f"a checkpoint of {arm.name}")
    tell(f"$ {' '.join([*way, job])}")
    subprocess.run([*way, job], check=True)
    return newest(arm)


def await_return(job: str, arm: pathlib.Path, before: int) -> None:
    """Waits until a job that was taken runs again, which SLURM lets it do after two minutes."""
    log, written = arm.parents[1] / f"jobs/1/{job}_0_log.out", arm / "manifest.json"
    until(lambda: log.read_text().count("Starting with") == 2, f"{job}, begun again")
    begun = time.time()
    # It says 0 until the state is there.
    until(lambda: written.stat().st_mtime > begun and steps(arm) > 0, f"{arm.name}, gone on")
    tell(f"{arm.name}: had a checkpoint of step {before}, runs again from step {steps(arm)}")
    assert steps(arm) >= before > 0


def main() -> None:
    if os.geteuid() or not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        sys.exit("tests/slurm.py: run it as root, after apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory() as name, slurm(folder := pathlib.Path(name)):
        tell(ask("sinfo", "--format=%P %a %D %T %c"))
        flags = [
            *("--size=64", "--steps=600", "--checkpoint_seconds=1"),
            *(f"--optimizer={optimizer}" for optimizer in ARMS),
            *make_pictures(folder),
        ]
        command = [sys.executable, "-m", "experiments.compare", *flags]
        run = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
        directory = folder / "slurm"
        jobs = [*command, "--launcher=slurm", f"--workdir={directory}"]
        tell("$ python -m experiments.compare … --launcher=slurm")
        with subprocess.Popen(jobs, **run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
            try:
                until(lambda: parent.poll() is not None or len(queue()) == len(ARMS), "three jobs")
                assert parent.poll() is None, "the comparison has ended"
                array = next(iter(queue())).partition("_")[0]
                until(lambda: "RUNNING" in queue().values(), "a running job")
                tell(ask("squeue", "--array", "--format=%i %T"))
                taken = {
                    f"{array}_{number}": (way, directory / "arms" / ARMS[number])
                    for number, way in enumerate((["scancel", "--signal=USR2"], ["scontrol", "requeue"]))
                }
                before = {job: take(way, job, arm) for job, (way, arm) in taken.items()}
                tell("$ squeue")
                tell(ask("squeue", "--array", "--format=%i %T"))
                for job, (_, arm) in taken.items():
                    await_return(job, arm, before[job])
                output, errors = parent.communicate()
            except AssertionError:
                parent.terminate()
                tell("".join(parent.communicate()))
                raise
        tell(output + errors)
        assert parent.returncode == 0
        assert not leftovers(directory)

        again = subprocess.run(jobs, **run, capture_output=True, check=True)
        assert "finished" not in again.stdout, "what has ended is not run again"
        tell("$ python -m experiments.compare …   # in one process")
        done = subprocess.run(
            [*command, f"--workdir={folder / 'here'}"], **run, capture_output=True, check=True
        )
        tell(done.stdout)
        assert results(directory) == results(folder / "here")
        tell("the same pictures and metrics to the bit")


if __name__ == "__main__":
    main()
