"""Runs as jobs: the results of one process, in parallel; failures alone; stopped, taken away and gone on with."""

import contextlib
import functools
import json
import os
import signal
import time
import types

import narrow
import numpy as np
import pytest
import submitit
from PIL import Image
from submitit.local import local

from experiments import cluster, launch
from jaxstyle.errors import UserError
from jaxstyle.runs import journal, workdir
from jaxstyle.runs.signals import Interrupted

RUNTIME = launch.Runtime(deterministic=False, compilation_cache="", devices=None)
LAYERS = ("--content_layer=block2_conv1", "--style_layer=block1_conv1")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("photo", "style")):
        noise = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return f"--content={folder / 'photo.png'}", f"--style={folder / 'style.png'}", "--size=32", *LAYERS


def results(directory):
    """By path, the bytes of pictures and of tables, but for seconds."""
    found = {path.relative_to(directory): path.read_bytes() for path in directory.glob("arms/*/image.png")}
    for path in directory.glob("arms/*/metrics.csv"):
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        found[path.relative_to(directory)] = np.delete(table, 2, 1).tobytes()
    return found


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def test_jobs_that_were_stopped_end_as_one_process_with_as_many_cores(flags, tmp_path):
    here, there = tmp_path / "here", tmp_path / "jobs"
    flags = (
        *flags,
        "--steps=1500",  # long enough to be stopped on its way
        "--save_every=100",
        "--optimizer=gd:learning_rate=1e30",
        "--optimizer=adam",
    )
    core = min(os.sched_getaffinity(0))
    narrow.run("experiments.compare", *flags, f"--workdir={here}", cores=[core], check=True)

    jobs = (*flags, "--launcher=local", f"--workdir={there}")
    # A terminal's Ctrl-C is for all processes of a group.
    with narrow.Process("experiments.compare", *jobs, start_new_session=True) as process:
        process.until((there / "arms/adam/snapshots/000100.png").exists)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    stopped = manifest(there / "arms/adam")
    assert stopped["status"] == "interrupted"
    assert (there / "arms/adam/checkpoints" / str(stopped["steps_done"])).exists()
    assert "adam,photo.png + style.png,0,interrupted" in (there / "summary.csv").read_text()

    done = narrow.run("experiments.compare", *jobs, check=True)
    output += done.stdout
    assert output.count("gd-learning_rate=1e30: diverged") == 1  # and so was not submitted again
    assert output.count("adam: finished, loss") == 1
    assert results(there) == results(here)
    assert len(results(here)) == 4
    mine, its = (journal.decisive(manifest(each / "arms/adam")) for each in (here, there))
    assert mine == its
    assert mine["cores"] == 1
    assert "resumed" not in manifest(there / "arms/adam")
    done = narrow.run("experiments.compare", *jobs)
    assert done.stdout == f"report: {there / 'report.html'}\n"
    assert len(list((there / "jobs").iterdir())) == 2


def held_by(lock):
    """The process that a lock's file names."""
    with contextlib.suppress(FileNotFoundError):
        return int((lock.read_text().split() or [0, 0])[1]) or None
    return None


def test_an_arm_that_is_killed_is_told_with_its_log_and_stops_no_other(flags, tmp_path):
    flags = (*flags, "--optimizer=adam", "--optimizer=lbfgs", "--launcher=local", f"--workdir={tmp_path}")
    with narrow.Process("experiments.compare", *flags, "--steps=20") as process:
        lock = tmp_path / "arms/adam" / workdir.LOCK
        # The command itself has it while it looks what there is to do.
        holder = process.until(lambda: (found := held_by(lock)) != process.pid and found)
        os.kill(holder, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == 2, errors
    told, last = errors.splitlines()
    assert told.startswith("adam: was killed")
    assert os.path.exists(told.rpartition("its log: ")[2])
    assert "1 of 2 jobs failed (adam)" in last
    assert "lbfgs,photo.png + style.png,0,finished" in (tmp_path / "summary.csv").read_text()


def test_a_sweep_of_jobs_has_the_rows_of_one_process(flags, tmp_path):
    flags = *flags, "--steps=5", "--learning_rates=1,10"
    core = min(os.sched_getaffinity(0))
    narrow.run("experiments.sweep", *flags, f"--workdir={tmp_path / 'here'}", cores=[core], check=True)
    narrow.run("experiments.sweep", *flags, "--launcher=local", f"--workdir={tmp_path / 'jobs'}", check=True)
    for name in ("sweep.csv", "curves.csv"):
        assert (tmp_path / "jobs" / name).read_text() == (tmp_path / "here" / name).read_text()


def test_a_study_of_jobs_is_tuned_run_and_measured(flags, tmp_path):
    flags = (*flags[2:], "--budgets=2,3", "--learning_rates=10", "--optimizer=adam", "--launcher=local")
    more = "--tuning_pairs=1", "--test_pairs=1", f"--workdir={tmp_path}"
    narrow.run("experiments.study", *flags, *more, check=True)
    assert len(list(tmp_path.glob("parts/*/rows.npy"))) == 2
    (arm,) = (tmp_path / "arms").iterdir()
    assert list(json.loads((tmp_path / "measured.json").read_text())) == [arm.name]
    assert "adam" in (tmp_path / "tables.md").read_text()


def thrice(path):
    """Taken from its node when it begins, asked to stop when it begins again, and then done."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    match len(path.read_text().splitlines()):
        case 1:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(60)
        case 2:
            raise Interrupted(signal.SIGTERM)


def test_a_job_of_slurms_that_is_taken_from_its_node_begins_again_and_one_that_is_told_to_stop_goes_on(
    tmp_path, monkeypatch
):
    """Of a cluster's own signals, with submitit's executor of this machine in its place."""
    monkeypatch.setattr(local, "subprocess", types.SimpleNamespace(Popen=narrow.popen))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = cluster.Job(functools.partial(thrice, tmp_path / "calls"), "slurm", RUNTIME)
    assert executor.submit(job).result() is None
    first, second, third = (tmp_path / "calls").read_text().split()
    assert first != second == third


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "WAIT", 0.5)
    with narrow.holding(tmp_path, 1) as other:

        def claim():
            with workdir.claimed(tmp_path):
                return "mine"

        assert cluster.patiently(claim) == "mine"
    assert capsys.readouterr().err.count(f"process {other.pid}") == 1


def test_a_mistake_is_what_a_job_returns_and_anything_else_a_failure(monkeypatch):
    monkeypatch.setattr(launch, "set_up", lambda given: None)

    def fail(error):
        raise error

    job = cluster.Job(functools.partial(fail, UserError("--size: too\nlarge")), "slurm", RUNTIME)
    assert job() == "--size: too large"
    with pytest.raises(KeyError):
        job._replace(function=functools.partial(fail, KeyError()))()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ((None, 2, None), "--jobs: is for --launcher"),
        ((None, None, ["partition=gpu"]), "--sbatch: is for --launcher"),
        (("local", 10**6, None), "--jobs=1000000: this process has"),
        (("local", None, ["time=5"]), "--sbatch=time=5: --launcher=local"),
        (("slurm", None, None), "no sbatch"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(asked, named, monkeypatch):
    monkeypatch.setattr(launch, "runtime", lambda: RUNTIME)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=named) as error:
        cluster.read(*asked, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "named"), [("gpu", "NAME=VALUE"), ("array=1-3", "decided by the launcher")])
def test_an_option_of_sbatch_is_a_name_and_a_value_that_is_free(text, named, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(launch, "runtime", lambda: RUNTIME)
    with pytest.raises(UserError, match=named):
        cluster.read("slurm", None, [text], None)


@pytest.mark.parametrize("name", ["100%advent", "%j"])
def test_a_folder_is_refused_whose_name_submitit_would_change(name, monkeypatch):
    monkeypatch.setattr(launch, "runtime", lambda: RUNTIME)
    with pytest.raises(UserError, match=f"--workdir=.*{name}/run: submitit puts"):
        cluster.read("local", None, None, f"runs/{name}/run")
    assert cluster.read("local", None, None, "runs/50% blur")


def test_a_job_takes_one_device(monkeypatch):
    monkeypatch.setattr(launch, "runtime", lambda: RUNTIME._replace(devices=2))
    with pytest.raises(UserError, match="--devices=2: a job of --launcher takes one"):
        cluster.read("local", None, None, None)


def test_jobs_of_this_machine_are_refused_where_jax_has_a_gpu(monkeypatch):
    monkeypatch.setattr(launch, "runtime", lambda: RUNTIME)
    monkeypatch.setattr(launch, "started", lambda: [types.SimpleNamespace(platform="gpu")])
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu"):
        cluster.read("local", None, None, None)


def test_without_submitit_it_is_told_what_brings_it(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jaxstyle\[cluster\]"):
        cluster.read("local", None, None, None)


@pytest.mark.parametrize(("jobs", "each"), [(None, [1, 1, 1, 1, 1]), (1, [5]), (2, [2, 2]), (5, [1] * 5)])
def test_cores_are_shared_out_evenly_and_no_core_twice(jobs, each, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 3, 6, 7})
    found = cluster.slots(jobs)
    assert [len(cores) for cores in found] == each
    assert len(set.union(*found)) == sum(each)
