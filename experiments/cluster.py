"""Runs as jobs: several at a time on cores of this machine, or an array of SLURM's, through `submitit`.

A job is a function of plain values that runs something in a folder of its own, from where it stopped to its end. All
that it did is in its folder, so nothing of it comes back but that it is over. The process that starts jobs, their
parent, waits for them and then does what it would have done after running them itself.

    DIR/jobs/1/ID_log.out    what the jobs that DIR's first parent started said, and submitit's files

Needs submitit (extra `cluster`), which is imported when it is first used.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from absl import flags
from tqdm import tqdm

from jaxstyle import machine
from jaxstyle.errors import UserError
from jaxstyle.runs import workdir
from jaxstyle.runs.signals import Interrupted, interruptible

from . import launch

#: Minutes that SLURM gives a job by default: one that takes longer is requeued and goes on.
MINUTES = 60

#: How often such a job may be requeued, and a year, which no job on this machine takes.
REQUEUES, YEAR = 1000, 365 * 24 * 60

#: How the variables begin that tell a job of itself.
_OF_A_JOB = ("SLURM_", "SUBMITIT_")

#: Seconds between two looks at jobs, between two questions to SLURM, and between two at a folder that is held.
LOOK, ASK, WAIT = 0.2, 20.0, 1.0

Result = TypeVar("Result")


class Launcher(NamedTuple):
    """Where jobs run, `local` or `slurm`, how many at a time if that is bounded, and options of sbatch."""

    place: str
    jobs: int | None
    sbatch: Mapping[str, str]
    runtime: launch.Runtime


def define_flags() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """The flags of a command that runs many things: where, how many at a time, and what sbatch is told."""
    return (
        flags.DEFINE_enum(
            "launcher",
            None,
            ["local", "slurm"],
            "Run arms as jobs (extra cluster): several at a time, each pinned to its cores of this machine, or as an "
            "array of SLURM's. By default in this process, one after the other.",
        ),
        flags.DEFINE_integer(
            "jobs",
            None,
            "Jobs at a time. By default, local: as many as there are cores, each with one; slurm: all.",
            lower_bound=1,
        ),
        flags.DEFINE_multi_string(
            "sbatch",
            None,
            f"An option of sbatch as NAME=VALUE, as in partition=gpu or gres=gpu:1; repeatable. time={MINUTES} by "
            "default, after which a job is requeued and goes on.",
        ),
    )


def read(
    place: str | None, jobs: int | None, sbatch: Sequence[str] | None, where: str | None
) -> Launcher | None:
    """What the flags ask for, --workdir among them; None is this process.

    Raises:
      UserError: they do not fit together, or this machine does not have what they need.
    """
    if place is None:
        if jobs or sbatch:
            raise UserError(
                f"--{'jobs' if jobs else 'sbatch'}: is for --launcher=local or slurm; give it too"
            )
        return None
    if not hasattr(signal, "SIGUSR2"):
        raise UserError(f"--launcher={place}: submitit needs a Unix; leave the flag out")
    if importlib.util.find_spec("submitit") is None:
        raise UserError(f"--launcher={place}: needs submitit; pip install 'jaxstyle[cluster]' brings it")
    folder = os.path.abspath(where or launch.RUNS)
    if tag := re.search("%[jtaA]", folder):
        raise UserError(
            f"--workdir={folder}: submitit puts numbers of jobs in the place of {tag[0]}; choose a path without it"
        )
    runtime = launch.runtime()
    if runtime.company:
        raise UserError(f"--launcher={place}: a job is one process; leave it out, or --processes")
    if (runtime.devices or 1) > 1:
        raise UserError(
            f"--devices={runtime.devices}: a job of --launcher takes one; leave one of the two out"
        )
    if place == "local":
        if sbatch:
            raise UserError(
                f"--sbatch={sbatch[0]}: --launcher=local asks no sbatch; take slurm, or leave it out"
            )
        if (jobs or 1) > machine.cores():
            raise UserError(f"--jobs={jobs}: this process has {machine.cores()} cores, and a job needs one")
        if (platform := launch.started()[0].platform) != "cpu":
            raise UserError(
                f"--launcher=local: its jobs run on CPU cores, and JAX takes the {platform} here; leave "
                "it out, or put JAX_PLATFORMS=cpu in front of the command"
            )
    elif not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--launcher=slurm: no sbatch and srun on PATH; run where SLURM is, or take local")
    return Launcher(place, jobs, dict(map(_option, sbatch or ())), runtime)


def _option(text: str) -> tuple[str, str]:
    """An option of sbatch and its value.

    Raises:
      UserError: the text is none, or the option is not free.
    """
    name, equals, value = text.lstrip("-").partition("=")
    if not (name and equals and value):
        raise UserError(f"--sbatch={text}: is not NAME=VALUE, as in partition=gpu")
    if name in ("array", "output", "error", "open-mode", "signal"):
        raise UserError(f"--sbatch={text}: {name} is decided by the launcher; leave it out")
    return name, value


class Job(NamedTuple):
    """What another process calls. `function` goes on from where it stopped, however often it is called."""

    function: Callable[[], Any]
    place: str
    runtime: launch.Runtime

    def __call__(self) -> str | None:
        """Runs it to its end; a user's mistake is the text that is returned."""
        if self.place == "local":
            launch.end_on_signals()
        launch.set_up(self.runtime)
        while True:
            try:
                patiently(self.function)
            except UserError as error:
                return " ".join(str(error).split())
            except Interrupted as interruption:
                # A checkpoint was just written. On this machine the parent asked for it, and has the job end. SLURM
                # sends SIGTERM some time before it ends a job, and knows whether it will start it again: until
                # then there is no reason to stop.
                if self.place == "local":
                    sys.exit(interruption.exit_status)
            else:
                return None

    def checkpoint(self) -> Any:
        """What SLURM is to start again when it takes the job from its node, for submitit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def patiently(function: Callable[[], Result]) -> Result:
    """What a function returns when no other process holds its folder: a job of an earlier parent, or of another."""
    told = False
    while True:
        try:
            return function()
        except workdir.HeldError as held:
            if not told:
                print(f"waiting: {held}", file=sys.stderr, flush=True)
            told = True
            time.sleep(WAIT)


def run(
    launcher: Launcher,
    directory: pathlib.Path,
    functions: Mapping[str, Callable[[], Any]],
    ended: Callable[[str], None],
) -> str | None:
    """Runs functions, by names for people, as jobs, and waits until all are over.

    Args:
      launcher: where.
      directory: claimed and begun, on a file system that all machines of the cluster see.
      functions: each picklable, and such that it goes on from where it stopped.
      ended: is told each name whose function has returned.

    Returns:
      What to tell, at the end, of those that failed, if some did; each was told when it failed.

    Raises:
      UserError: SLURM does not take them.
      Interrupted: a signal asked for it. Jobs were stopped, those on this machine with a checkpoint.
    """
    if not functions:
        return None
    before = [int(path.name) for path in directory.glob("jobs/*") if path.name.isdecimal()]
    folder = directory / "jobs" / str(max(before, default=0) + 1)
    folder.mkdir(parents=True)
    queue = (_Local if launcher.place == "local" else _Slurm)(launcher, folder)
    waiting = {name: Job(each, launcher.place, launcher.runtime) for name, each in functions.items()}
    running: dict[str, Any] = {}
    failed = []
    with (
        interruptible() as signals,
        tqdm(total=len(waiting), unit="job", desc=directory.name, disable=None) as bar,
    ):
        try:
            for name, job in _until_over(queue, waiting, running, signals):
                if problem := _problem(job):
                    failed.append(name)
                    tqdm.write(f"{name}: {problem}; its log: {job.paths.stdout}", sys.stderr)
                else:
                    ended(name)
                bar.update()
        finally:
            if running:
                tqdm.write(f"stopping {len(running)} of {len(functions)} jobs", sys.stderr)
                queue.stop(list(running.values()))
        if signals:
            for name, job in running.items():
                if job.paths.result_pickle.exists() and not _problem(job):
                    ended(name)  # in the meantime
            raise Interrupted(signals[0])
    if not failed:
        return None
    return (
        f"{len(failed)} of {len(functions)} jobs failed ({', '.join(failed)}), whose logs are in {folder}; "
        "the same command tries them again"
    )


def _until_over(
    queue: Any, waiting: dict[str, Job], running: dict[str, Any], signals: Sequence[int]
) -> Iterator[tuple[str, Any]]:
    """Starts what waits when there is room, and gives what runs as it is over, until all is or a signal came."""
    while (waiting or running) and not signals:
        running |= queue.start(waiting)
        for name in [name for name, job in running.items() if queue.over(job)]:
            yield name, running.pop(name)
        time.sleep(LOOK)


def _problem(job: Any) -> str | None:
    """Why a job that is over did not come to its end, if so."""
    from submitit.core import utils

    path = job.paths.result_pickle
    if not path.exists():
        return "was killed or could not start"
    outcome, value = utils.pickle_load(path)
    return f"failed: {value.strip().splitlines()[-1]}" if outcome == "error" else value


@contextlib.contextmanager
def _starting(cores: set[int] | None) -> Iterator[None]:
    """Has processes that are started meanwhile run on these cores, with the variables that this one was given.

    Their libraries count cores when they are loaded, so it must be so from their start. They do not hear of a
    terminal's Ctrl-C, which is for their parent: it has them stop.
    """
    here = dict(os.environ)
    # Where this process is itself a job, what it was told of that is not for others.
    given = {
        name: value
        for name, value in launch.ENVIRONMENT.items()
        if not name.startswith(_OF_A_JOB) or name == "SLURM_CONF"
    }
    changed = {name for name in given.keys() | here.keys() if given.get(name) != here.get(name)}
    _set(given, changed)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before = os.sched_getaffinity(0) if cores else None
    if cores:
        os.sched_setaffinity(0, cores)  # of this thread, and of what it starts
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _set(here, changed)


def _set(variables: Mapping[str, str], names: Collection[str]) -> None:
    for name in names:
        if name in variables:
            os.environ[name] = variables[name]
        else:
            del os.environ[name]


def slots(jobs: int | None) -> list[set[int] | None]:
    """The cores of each of so many jobs at a time; by default one each. None where a system cannot pin."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * (jobs or machine.cores())
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // (jobs or len(cores))
    return [set(cores[i * each : (i + 1) * each]) for i in range(jobs or len(cores))]


class _Local:
    """Jobs on this machine, as many at a time as there are slots, which share out its cores evenly."""

    def __init__(self, launcher: Launcher, folder: pathlib.Path):
        import submitit

        self._executor = submitit.LocalExecutor(folder)
        self._executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
        self._free, self._taken = slots(launcher.jobs), {}

    def start(self, waiting: dict[str, Job]) -> dict[str, Any]:
        """Starts as many of those that wait as there is room for, which then wait no more."""
        started = {}
        while waiting and self._free:
            name, cores = next(iter(waiting)), self._free.pop(0)
            with _starting(cores):
                started[name] = self._executor.submit(waiting.pop(name))
            self._taken[started[name].job_id] = cores
        return started

    def over(self, job: Any) -> bool:
        """Whether a job is over; its cores are free then."""
        if not job.done():
            return False
        self._free.append(self._taken.pop(job.job_id))
        return True

    def stop(self, jobs: Sequence[Any]) -> None:
        """Has jobs write a checkpoint and end, and waits for that."""
        # The process of a job's id starts the job's own, and hands it SIGTERM from then on.
        while not all(job.done() or job.paths.stdout.exists() for job in jobs):
            time.sleep(LOOK)
        if any(time.time() - job.paths.stdout.stat().st_mtime < LOOK for job in jobs if not job.done()):
            time.sleep(LOOK)  # which it does at once after it opened the log
        for job in jobs:
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)
        while not all(job.done() for job in jobs):
            time.sleep(LOOK)


class _Slurm:
    """Jobs of one array of SLURM's, which starts them when it has room."""

    def __init__(self, launcher: Launcher, folder: pathlib.Path):
        import submitit

        self._executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
        bound = {} if launcher.jobs is None else {"array_parallelism": launcher.jobs}
        options = {"requeue": True, **launcher.sbatch}
        self._executor.update_parameters(
            job_name="jaxstyle", time=MINUTES, stderr_to_stdout=True, additional_parameters=options, **bound
        )
        self._asked, self._missing = time.monotonic(), {}

    def start(self, waiting: dict[str, Job]) -> dict[str, Any]:
        """Submits all that wait, which then wait no more."""
        from submitit.core import utils

        if not waiting:
            return {}
        try:
            with _starting(None):
                jobs = self._executor.submit_array(list(waiting.values()))
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            raise UserError(f"--launcher=slurm: {error}") from error
        started = dict(zip(waiting, jobs, strict=True))
        self._missing = {job.job_id: 0 for job in jobs}
        waiting.clear()
        return started

    def over(self, job: Any) -> bool:
        """Whether a job has a result, or SLURM has not known it for a while: then there will be none."""
        if time.monotonic() - self._asked > ASK:
            self._ask()
        return job.paths.result_pickle.exists() or self._missing[job.job_id] > 1

    def _ask(self) -> None:
        """Counts, for each job, how often in a row SLURM did not know it."""
        (array,) = {job_id.partition("_")[0] for job_id in self._missing}
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"],
            capture_output=True,
            text=True,
            check=False,
        )
        self._asked = time.monotonic()
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return  # SLURM does not answer, which says nothing of the jobs
        known = set(asked.stdout.split())
        self._missing = {name: 0 if name in known else n + 1 for name, n in self._missing.items()}

    def stop(self, jobs: Sequence[Any]) -> None:
        """Takes jobs out of the queue; those that run are told some time before they are ended."""
        subprocess.run(["scancel", *(job.job_id for job in jobs)], check=False)
