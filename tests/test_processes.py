"""Several processes that make one picture: two on the loopback. `tests/together.py` has four, and deaths of each."""

import pathlib
import signal
from typing import NamedTuple

import narrow
import numpy as np
import pytest
import together
from kill import leftovers, make_pictures, results

from experiments import launch
from jaxstyle.errors import UserError
from jaxstyle.runs import journal, processes

STEPS = 20


class Story(NamedTuple):
    """A run by two processes that is told to stop, goes on, loses process 0, and is ended by one process.

    Attributes:
      folder: of the run.
      whole: the folder of the same by one process of two devices, which nothing disturbed.
      stopped, lost: how the two ended: status, output and errors of each.
      before: the rows when they had stopped.
      left: how many the death left.
    """

    folder: pathlib.Path
    whole: pathlib.Path
    stopped: list[tuple[int, str, str]]
    lost: list[tuple[int, str, str]]
    before: np.ndarray
    left: int


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    tmp_path = tmp_path_factory.mktemp("processes")
    pictures, here, whole = make_pictures(tmp_path), tmp_path / "two", tmp_path / "one"
    given = "experiments.stylize", *together.arguments(here, pictures, STEPS)
    two = together.Company(2, *given)
    together.await_steps(here, two)
    two.members[1].send_signal(signal.SIGTERM)
    stopped, before = two.end(), together.rows(here)
    two = together.Company(2, *given)
    together.await_steps(here, two, len(before) + 2)
    two.members[0].kill()
    lost, left = two.end(), len(together.rows(here))
    narrow.run(*given, "--devices=2", check=True)
    narrow.run("experiments.stylize", *together.arguments(whole, pictures, STEPS, "--devices=2"), check=True)
    return Story(here, whole, stopped, lost, before, left)


def test_a_signal_to_one_stops_all_with_a_checkpoint(story):
    (status, said, _), (other, nothing, errors) = story.stopped
    assert status == other == 128 + signal.SIGTERM, errors
    assert said.startswith("compiling …\ncompiled in ")
    assert nothing == ""
    assert 3 <= len(story.before) < STEPS


def test_the_death_of_one_ends_the_other_with_a_line(story):
    _, (status, _, errors) = story.lost
    assert status not in (0, 2)
    assert errors == (
        "stylize: process 1 ends, as process 0 is gone; the same command goes on from the last checkpoint\n"
    )
    assert len(story.before) < story.left < STEPS


def test_the_picture_is_that_of_one_process_with_as_many_devices(story):
    assert results(story.folder) == results(story.whole)
    assert leftovers(story.folder) == []
    np.testing.assert_array_equal(together.rows(story.folder)[: len(story.before), 3:], story.before[:, 3:])


def test_the_manifest_tells_how_many_there_were(story):
    (change,) = journal.read_manifest(story.folder)["resumed"]
    assert change["differs"] == {"processes": [2, 1]}


def test_processes_with_different_flags_are_refused(tmp_path):
    where = (
        f"--coordinator=localhost:{together.free_port()}",
        "--processes=2",
        f"--workdir={tmp_path / 'none'}",
    )
    members = [
        narrow.Process("experiments.compare", *where, f"--process={index}", f"--seed={index}")
        for index in range(2)
    ]
    for member in members:
        _, errors = member.communicate()
        assert (member.returncode, errors) == (
            2,
            "compare: process 1 differs from process 0 in --seed; give all the same command and files, on machines "
            "that are alike\n",
        )
    assert not (tmp_path / "none").exists()


def test_a_process_that_finds_no_coordinator_names_its_address(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    with pytest.raises(
        UserError, match=r"--coordinator=localhost:\d+: Connection refused; process 0 must listen"
    ):
        processes.join(f"localhost:{together.free_port()}", 2, 1)
    with pytest.raises(UserError, match=r"--coordinator=no-such-host.invalid:1: .*; process 0 must listen"):
        processes.join("no-such-host.invalid:1", 2, 1)


def test_a_command_for_one_refuses_several():
    told = narrow.refused("experiments.sweep", "--coordinator=here:1", "--processes=2", "--process=1")
    assert told == "sweep: --processes=2: is for stylize and compare; with 1 each is alone\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((None, 2, None), "are given together"),
        (("here:1", None, None), "are given together"),
        ((None, 2, 5), "are given together"),
        (("here", 2, 0), "must be HOST:PORT"),
        (("here:65536", 2, 0), "must be HOST:PORT"),
        (("here:1", 2, 2), "--process=2: the 2 of --processes are numbered from 0"),
    ],
)
def test_flags_that_do_not_fit_are_told(given, told):
    with pytest.raises(UserError, match=told):
        launch.company(*given)


@pytest.mark.parametrize(
    ("variables", "company"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, launch.Company(None, 4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, launch.Company(None, 2, 0)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_STEP_NUM_TASKS": "", "OMPI_COMM_WORLD_SIZE": ""}, None),
    ],
)
def test_what_starts_processes_is_known_by_its_variables(monkeypatch, variables, company):
    """Alone is a job of one task, a script of a larger one that `srun` did not start, and who asks for it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.company(None, None, None) == company
    assert launch.company(None, 1, None) is None


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2: needs SLURM_PROCID too"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": ""}, "=2: needs OMPI_COMM_WORLD_RANK too"),
        ({"OMPI_COMM_WORLD_SIZE": "two"}, "OMPI_COMM_WORLD_SIZE=two: must be a number"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "-1"}, "OMPI_COMM_WORLD_RANK=-1: must be"),
    ],
)
def test_variables_that_tell_no_numbers_are_told_and_one_is_alone_who_asks_for_it(
    monkeypatch, variables, told
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        launch.company(None, None, None)
    assert launch.company(None, 1, None) is None
