"""Event files for TensorBoard, read back: every step once, whatever a run went through."""

import collections
import csv
import signal

import narrow
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from jaxstyle.errors import UserError
from jaxstyle.lab import tensorboard
from jaxstyle.lab.tensorboard import Events, records
from jaxstyle.runs import journal

SMALL = ("--content_layer=block1_conv1", "--style_layer=block1_conv1", "--size=32", "--tensorboard")


def read(directory):
    """By tag, the steps and values (scalars, else None) of all event files there, by step."""
    found = collections.defaultdict(list)
    for path in directory.glob("events.*"):
        for record in records(path):
            event = Event.FromString(record[12:-4])
            for value in event.summary.value:
                simple = value.simple_value if value.WhichOneof("value") == "simple_value" else None
                found[value.tag].append((event.step, simple))
    return {tag: sorted(points) for tag, points in found.items()}


def hyperparameters(directory):
    """The values that the page of hyperparameters compares."""
    (path,) = directory.glob("events.*")
    for record in records(path):
        for value in Event.FromString(record[12:-4]).summary.value:
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                values = data.session_start_info.hparams.items()
                return {name: each.string_value or each.number_value for name, each in values}
    raise AssertionError("there are none")


def row(step):
    return np.float64([step, 2 * step + 1, 0.1 * step, 100 - step, 1, 2, 3])


def written(directory, steps):
    events = Events(directory, {"optimizer": "adam"})
    for step in steps:
        events.row(row(step))
        events.image(np.full((4, 5, 3), 300.0))
    events.close()


@pytest.mark.parametrize("first", [0, 3, 6])
def test_a_run_that_goes_on_has_no_step_twice_and_none_is_lost(tmp_path, first):
    written(tmp_path, range(6))
    written(tmp_path, range(first, 9))
    found = read(tmp_path)
    assert found["loss/total"] == [(step, 100 - step) for step in range(9)]
    assert found["loss_by_evaluation/total"] == [(2 * step + 1, 100 - step) for step in range(9)]
    assert found["evaluations_a_step"] == [(step, 2) for step in range(1, 9)]
    assert [step for step, _ in found["image"]] == list(range(9))
    assert len(found["_hparams_/session_start_info"]) == 1


def test_what_a_step_took_is_not_made_up_where_the_step_before_was_not_written(tmp_path):
    written(tmp_path, range(3))
    written(tmp_path, range(6, 9))
    assert [step for step, _ in read(tmp_path)["evaluations_a_step"]] == [1, 2, 7, 8]


def test_what_a_killed_process_had_half_written_is_left_out(tmp_path):
    written(tmp_path, range(6))
    (path,) = tmp_path.glob("events.*")
    path.write_bytes(path.read_bytes()[:-7])
    written(tmp_path, range(4, 9))
    assert [step for step, _ in read(tmp_path)["loss/total"]] == list(range(9))


def test_an_interrupted_run_has_the_points_of_its_metrics(tmp_path):
    arguments = (*SMALL, "--steps=300", "--scales=1", "--optimizer=adam", f"--workdir={tmp_path}")
    with narrow.Process("experiments.stylize", *arguments, "--checkpoint_seconds=0") as running:
        running.until((tmp_path / "metrics.csv").exists)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    again = narrow.run("experiments.stylize", *arguments)
    assert again.returncode == 0, again.stderr
    rows, found = journal.read_metrics(tmp_path / "metrics.csv"), read(tmp_path / "tensorboard")
    assert [step for step, _ in found["loss/style"]] == list(range(301))
    np.testing.assert_allclose([loss for _, loss in found["loss/style"]], rows[:, 5], rtol=1e-6)
    assert [step for step, _ in found["loss_by_evaluation/total"]] == list(rows[:, 1])
    images = [step for step, _ in found["image"]]
    assert len(set(images)) == len(images)
    assert {0, 300} <= set(images)
    assert "tensorboard" not in (tmp_path / "run.flags").read_text()


def test_arms_of_a_comparison_and_rates_of_a_sweep_have_their_hyperparameters(tmp_path):
    arms = ("--optimizer=adam:learning_rate=3", "--optimizer=lbfgs", "--steps=2", "--save_every=1")
    compare = (*SMALL, *arms, f"--workdir={tmp_path / 'compare'}")
    assert narrow.run("experiments.compare", *compare).returncode == 0
    adam = tmp_path / "compare" / "arms" / "adam-learning_rate=3" / "tensorboard"
    assert hyperparameters(adam)["optimizer"] == "adam"
    assert hyperparameters(adam)["learning_rate"] == 3
    assert [step for step, _ in read(adam)["image"]] == [0, 1, 2]
    rates = ("--learning_rates=1,2", "--steps=2", f"--workdir={tmp_path / 'sweep'}")
    assert narrow.run("experiments.sweep", *SMALL, *rates).returncode == 0
    lanes = {path.name: path for path in (tmp_path / "sweep" / "tensorboard").iterdir()}
    assert {name: hyperparameters(path)["learning_rate"] for name, path in lanes.items()} == {
        "adam-1.0": 1,
        "adam-2.0": 2,
    }
    assert [step for step, _ in read(lanes["adam-2.0"])["loss/total"]] == [0, 1, 2]


def test_the_step_sizes_of_a_line_search_are_there(tmp_path):
    flags = "--steps=3", "--scales=1", "--optimizer=lbfgs", f"--workdir={tmp_path}"
    assert narrow.run("experiments.stylize", *SMALL, *flags).returncode == 0
    found = read(tmp_path / "tensorboard")
    assert [step for step, _ in found["stepsize"]] == [1, 2, 3]
    assert all(size > 0 for _, size in found["stepsize"])


def test_the_event_files_of_a_sweep_grow_with_it_and_have_no_step_twice(tmp_path):
    flags = "--learning_rates=1,2,1e30", "--chunk=2", "--steps=200", f"--workdir={tmp_path}"
    with narrow.Process("experiments.sweep", *SMALL, *flags, "--checkpoint_seconds=0") as running:
        lane = tmp_path / "tensorboard" / "adam-2.0"
        running.until(lambda: len(read(lane).get("loss/total", ())) >= 5)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    assert 5 <= len(read(lane)["loss/total"]) < 200
    again = narrow.run("experiments.sweep", *SMALL, *flags)
    assert again.returncode == 0, again.stderr
    with open(tmp_path / "curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    for rate in ("1.0", "2.0", "1e+30"):
        rows = [row for row in curves if row["learning_rate"] == rate]
        found = read(tmp_path / "tensorboard" / f"adam-{rate}")["loss/total"]
        assert [step for step, _ in found] == [int(row["step"]) for row in rows]
        np.testing.assert_allclose(
            [loss for _, loss in found], [float(row["total"]) for row in rows], rtol=1e-6
        )


def test_without_the_extra_one_line_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--tensorboard: .*pip install 'jaxstyle\[tensorboard\]'"):
        tensorboard.check()
