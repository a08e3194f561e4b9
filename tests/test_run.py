"""A run in its directory: it ends with the same bits wherever it was stopped, and never with half a file."""

import errno
import functools
import json
import os
import signal
import sys
import threading

import filelock
import jax
import jax.numpy as jnp
import narrow
import numpy as np
import pytest
from kill import leftovers, results
from test_training import grow

import jaxstyle
from jaxstyle import files, training
from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.losses.objective import GATYS, Style
from jaxstyle.losses.recipes import Weighting
from jaxstyle.network import vgg
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, loop, workdir
from jaxstyle.runs.checkpoints import Checkpoints
from jaxstyle.runs.clocks import Pace

STEPS = 3


@pytest.fixture(scope="module")
def program(make_problem, content):
    """Starts the small problem, and goes on from a state of it, with Adam."""
    problem = make_problem(GATYS)
    init, step = map(jax.jit, training.program(GATYS, "adam", catalogue.parse("adam").static)[:2])

    def start(learning_rate=1.0):
        values = {**catalogue.parse("adam").traced, "learning_rate": learning_rate}
        return init(problem, jnp.array(content), {key: jnp.float32(value) for key, value in values.items()})

    return start, functools.partial(step, problem)


@pytest.fixture(scope="module")
def execute(program):
    """Runs the program in a directory as a command does."""
    start, advance = program
    structure = jax.eval_shape(start)

    def execute(
        directory,
        *,
        start=start,
        advance=advance,
        report=lambda row: None,
        seconds=0.0,
        manifest=None,
        **more,
    ):
        with workdir.claimed(directory):
            if workdir.begin(directory, "--steps=3\n", overwrite=False) in ("finished", "diverged"):
                return None
            return loop.execute(
                directory,
                manifest or {"seed": 0},
                [
                    loop.Stage(
                        STEPS,
                        lambda: loop.Programs(
                            lambda _: start(), structure, advance, lambda state: state.iterate.image
                        ),
                    )
                ],
                save=lambda image: pictures.write(directory / "image.png", image, "--steps=3\n"),
                report=report,
                checkpoint_seconds=seconds,
                **more,
            )

    return execute


@pytest.fixture(scope="module")
def expected(tmp_path_factory, execute):
    directory = tmp_path_factory.mktemp("whole")
    assert execute(directory, seconds=1e9).status == "finished"
    return results(directory)


def status(directory):
    return json.loads((directory / "manifest.json").read_text())["status"]


def test_checkpoints_change_no_bit(tmp_path, execute, expected):
    execute(tmp_path, seconds=0)
    assert results(tmp_path) == expected
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(("evaluations", "last"), [(1, 0), (2, 1), (3, 2), (100, STEPS)])
def test_a_run_ends_where_its_evaluations_are_spent(tmp_path, execute, expected, evaluations, last):
    """The start takes one, as does each step of Adam."""
    found = execute(tmp_path, evaluations=evaluations)
    assert found.status == status(tmp_path) == "finished"
    np.testing.assert_array_equal(found.rows[:, 1], np.arange(1, last + 2))
    lines = results(tmp_path)["metrics.csv"].splitlines()
    assert lines == expected["metrics.csv"].splitlines()[: last + 2]


# --- stopped anywhere ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What stands for a death: nothing catches it."""


class Reaper:
    """Lets a number of changes of files happen under a folder, and none after."""

    def __init__(self):
        self.folder, self.left = None, 0
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree")
        path = str(arguments[0]) if changes else ""
        if path.startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                raise Killed


@pytest.fixture(scope="module")
def reaper():
    reaper = Reaper()
    yield reaper
    reaper.folder = None


def test_a_death_before_any_change_of_a_file_loses_nothing(tmp_path, execute, expected, reaper):
    deaths = 0
    while True:
        directory = tmp_path / f"{deaths}"
        reaper.folder, reaper.left = str(directory), deaths
        try:
            execute(directory)
        except Killed:
            reaper.folder = None
            execute(directory)
        else:
            break
        finally:
            reaper.folder = None
        assert results(directory) == expected, deaths
        assert not leftovers(directory), deaths
        assert status(directory) == "finished"
        deaths += 1
    assert deaths > 10 * STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 1, STEPS])
def test_a_signal_finishes_the_step_and_keeps_it(tmp_path, execute, expected, number, at):
    def report(row):
        if row[0] == at:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(loop.Interrupted, match=signal.Signals(number).name) as caught:
        execute(tmp_path, report=report, seconds=1e9)
    assert caught.value.exit_status == 128 + number
    assert signal.getsignal(number) is before
    if at < STEPS:
        assert status(tmp_path) == "interrupted"
        assert len(journal.read_metrics(tmp_path / "metrics.csv")) == at + 1
        seen = []
        execute(tmp_path, report=lambda row: seen.append(int(row[0])))
        assert seen == list(range(at + 1, STEPS + 1))
    assert status(tmp_path) == "finished"
    assert results(tmp_path) == expected


def test_the_second_signal_is_no_longer_held_back():
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell's background job has not
    try:
        with loop.interruptible() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_clock_and_the_rows_go_on(tmp_path, execute):
    def report(row):
        if row[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Interrupted):
        execute(tmp_path, report=report)
    first = journal.read_metrics(tmp_path / "metrics.csv")
    execute(tmp_path)
    rows = journal.read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(rows[:3], first)
    assert (np.diff(rows[:, 2]) > 0).all()


def test_a_damaged_checkpoint_costs_its_steps_and_no_more(tmp_path, execute, expected, caplog):
    def report(row):
        if row[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Interrupted):
        execute(tmp_path, report=report)
    (tmp_path / "checkpoints" / "2" / "sha256").unlink()
    seen = []
    execute(tmp_path, report=lambda row: seen.append(int(row[0])))
    assert seen == [2, 3]
    assert "checkpoint 2 is damaged" in caplog.text
    assert results(tmp_path) == expected


# --- stages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def execute_in_stages(program, random_network, style):
    """Runs two stages of two steps each, the second at a larger size."""
    start, advance = program
    spec = catalogue.parse("adam")
    made = training.program(GATYS, spec.name, spec.static)
    weighting = Weighting({"block2_conv2": 1.0}, {"block1_conv1": 10.0}, 1e-3)
    network, shape = vgg.prepare(random_network, "block2_conv2"), (48, 44, 3)
    problem = jaxstyle.pose(GATYS, network, np.full(shape, 90, np.float32), [Style(style)], weighting)
    grown = functools.partial(jax.jit(grow, static_argnums=(0, 1)), made, shape, problem)
    step = functools.partial(jax.jit(made.step), problem)

    def image(state):
        return state.iterate.image

    def execute(
        directory,
        report=lambda row: None,
        watch=lambda step, state, image: None,
        seconds=0.0,
        growing=lambda: None,
    ):
        def second(state):
            growing()
            return grown(state)

        stages = [
            loop.Stage(2, lambda: loop.Programs(lambda _: start(), jax.eval_shape(start), advance, image)),
            loop.Stage(4, lambda: loop.Programs(second, jax.eval_shape(lambda: grown(start())), step, image)),
        ]
        with workdir.claimed(directory):
            workdir.begin(directory, "--scales=2\n", overwrite=False)
            return loop.execute(
                directory,
                {},
                stages,
                save=lambda image: pictures.write(directory / "image.png", image),
                report=report,
                watch=watch,
                checkpoint_seconds=seconds,
            )

    return execute


def test_stages_follow_each_other_at_their_sizes(tmp_path, execute_in_stages, content):
    seen = {}
    result = execute_in_stages(tmp_path, watch=lambda step, state, image: seen.update({step: image().shape}))
    assert seen == {0: content.shape, 1: content.shape, 2: content.shape, 3: (48, 44, 3), 4: (48, 44, 3)}
    np.testing.assert_array_equal(result.rows[:, 0], range(5))
    np.testing.assert_array_equal(result.rows[:, 1], [1, 2, 3, 5, 6])  # one evaluation to begin a stage
    assert result.image.shape == (48, 44, 3)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_in_stages_goes_on_where_it_stopped(tmp_path, execute_in_stages, at):
    execute_in_stages(tmp_path / "whole")

    def report(row):
        if row[0] == at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Interrupted):
        execute_in_stages(tmp_path / "stopped", report=report)
    execute_in_stages(tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.parametrize("at", [2, "growing"])
def test_a_signal_at_a_change_of_scale_loses_nothing(tmp_path, execute_in_stages, caplog, at):
    """With no checkpoint before it: what is kept then must be one that resuming takes."""
    execute_in_stages(tmp_path / "whole")

    def ask():
        os.kill(os.getpid(), signal.SIGTERM)

    asking = {
        "growing": {"growing": ask},
        2: {"report": lambda row: row[0] == 2 and ask()},
    }
    with pytest.raises(loop.Interrupted):
        execute_in_stages(tmp_path / "stopped", seconds=1e9, **asking[at])
    seen = []
    execute_in_stages(tmp_path / "stopped", report=lambda row: seen.append(int(row[0])))
    assert seen == ([4] if at == "growing" else [3, 4])
    assert "damaged" not in caplog.text
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_signal_at_the_step_that_converges_ends_the_run_as_finished(tmp_path, program, execute, seconds):
    _, advance = program

    def converge(state):
        state, metrics = advance(state)
        return state._replace(converged=state.step == 1), metrics

    def report(row):
        if row[0] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Interrupted):
        execute(tmp_path, advance=converge, report=report, seconds=seconds)
    assert status(tmp_path) == "finished"
    rows = journal.read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(rows[:, 0], range(STEPS + 1))
    np.testing.assert_array_equal(rows[2:, 3:], rows[[1, 1], 3:])
    assert journal.read_manifest(tmp_path)["converged_at"] == 1


# --- the pace of checkpoints -----------------------------------------------------------------------------------


def kept(pace_of, costs, steps):
    """The seconds at which a pace has something written that takes `costs`, asked each second."""
    time, found = [0.0], []
    pace = pace_of(lambda: time[0])

    def write():
        found.append(time[0])
        time[0] += costs

    for _ in range(steps):
        time[0] += 1
        before = len(found)
        assert pace.keep(write) == (len(found) > before)
    return found


def test_checkpoints_are_written_in_time_and_rarely_where_they_cost():
    assert kept(lambda now: Pace(0, now), 0.5, 3) == [1, 2.5, 4]
    assert kept(lambda now: Pace(3, now), 0, 12) == [4, 8, 12]
    first, second = kept(lambda now: Pace(3, now), 1, 60)
    assert (first, second - first - 1) == (4, 41)  # the first one took 1 s: 40 s are to pass


# --- divergence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0, 1, 2])
def test_divergence_keeps_the_finite_rows_and_the_last_finite_picture(tmp_path, program, execute, last):
    start, advance = program

    def burst(state):
        """A step that takes the iterate after `last` out of range."""
        huge = jax.tree.map(lambda leaf: leaf, state.hyperparameters) | {"learning_rate": jnp.float32(1e30)}
        return advance(state._replace(hyperparameters=huge) if state.step == last else state)

    result = execute(tmp_path, advance=burst)
    assert result.status == status(tmp_path) == "diverged"
    assert result.rows[:, 0].tolist() == list(range(last + 1))
    assert np.isfinite(result.rows).all()
    assert np.isfinite(result.image).all()
    written = np.float32(journal.read_metrics(tmp_path / "metrics.csv"))
    np.testing.assert_array_equal(written[:, 3:], np.float32(result.rows[:, 3:]))
    state = start()
    for _ in range(last):
        state, _ = advance(state)
    pictures.write(tmp_path / "expected.png", np.asarray(state.iterate.image), "--steps=3\n")
    assert (tmp_path / "image.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_a_start_without_a_finite_loss_has_diverged(tmp_path, program, execute):
    state = program[0]()
    evaluation = state.iterate.evaluation._replace(total=jnp.float32(jnp.inf))
    state = state._replace(iterate=state.iterate._replace(evaluation=evaluation), diverged=jnp.bool_(True))
    result = execute(tmp_path, start=lambda: state)
    assert result.status == status(tmp_path) == "diverged"
    assert result.rows[:, 3].tolist() == [np.inf]
    assert (tmp_path / "image.png").exists()


# --- who may write where ------------------------------------------------------------------------------------------


def test_a_directory_is_held_by_one_process_and_by_no_dead_one(tmp_path):
    with narrow.holding(tmp_path, 60) as holder:
        with (
            pytest.raises(UserError, match=f"process {holder.pid} on .* is writing there"),
            workdir.claimed(tmp_path),
        ):
            pass
        holder.kill()
    with workdir.claimed(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / workdir.LOCK).read_text()


def test_who_only_looks_whether_a_directory_is_held_keeps_nobody_out(tmp_path):
    looking = filelock.FileLock(tmp_path / workdir.LOCK, thread_local=False)
    looking.acquire()  # as `held` does, though for longer
    threading.Timer(0.01, looking.release, [True]).start()
    with workdir.claimed(tmp_path):
        assert workdir.held(tmp_path)


@pytest.mark.parametrize(
    ("more", "stays"),
    [
        ([], False),
        (["report.html", "arms/run.flags"], False),
        (["regions/photo-1.png", "tensorboard/a"], False),
    ]
    + [([name], True) for name in ("metrics.csv", "checkpoints/3/arrays.npz", "parts/adam/curves.npz")],
)
def test_a_run_that_is_refused_before_it_has_anything_to_keep_leaves_the_folder_free(tmp_path, more, stays):
    def refused():
        with workdir.claimed(tmp_path):
            workdir.begin(tmp_path, "--size=9000\n", overwrite=False)
            journal.write_manifest(tmp_path, {"status": "running"})
            for name in more:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
            raise UserError("--size: needs more memory")

    with pytest.raises(UserError, match="needs more memory"):
        refused()
    assert (tmp_path / "run.flags").exists() == (tmp_path / "manifest.json").exists() == stays
    if not stays:
        assert [*tmp_path.iterdir()] == []
        assert workdir.begin(tmp_path, "--size=5000\n", overwrite=False) == "new"


def test_a_run_that_is_refused_in_a_folder_of_the_users_leaves_what_was_there(tmp_path):
    (tmp_path / "photo.jpg").touch()

    def refused():
        with workdir.claimed(tmp_path):
            workdir.begin(tmp_path, "--size=9000\n", overwrite=False)
            raise UserError("--size: needs more memory")

    with pytest.raises(UserError, match="needs more memory"):
        refused()
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_run_that_was_begun_before_stays_when_it_is_refused(tmp_path):
    workdir.begin(tmp_path, "--size=9000\n", overwrite=False)
    with pytest.raises(UserError, match="needs more memory"), workdir.claimed(tmp_path):
        raise UserError("--size: needs more memory")
    assert (tmp_path / "run.flags").read_text() == "--size=9000\n"


def test_a_file_of_no_run_stays_when_a_run_is_refused_there(tmp_path):
    (tmp_path / "manifest.json").write_text("mine")
    with pytest.raises(UserError, match="is of no run"), workdir.claimed(tmp_path):
        workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    assert (tmp_path / "manifest.json").read_text() == "mine"


@pytest.mark.parametrize("path", ["file", "file/under", "long" * 100, "nul\0"])
def test_where_nothing_can_be_written_is_told(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write there"), workdir.claimed(tmp_path / path):
        pass


def test_other_flags_are_named_and_need_to_overwrite(tmp_path):
    assert workdir.begin(tmp_path, "--a=1\n--nob\n--c=2\n", overwrite=False) == "new"
    assert workdir.begin(tmp_path, "--a=1\n--nob\n--c=2\n", overwrite=False) == "unfinished"
    with pytest.raises(UserError, match=r"they differ in a, b\)"):
        workdir.begin(tmp_path, "--a=2\n--b\n--c=2\n", overwrite=False)
    assert workdir.begin(tmp_path, "--a=2\n--b\n--c=2\n", overwrite=True) == "new"
    assert workdir.begin(tmp_path, "--a=2\n--b\n--c=2\n", overwrite=False) == "unfinished"


def test_the_order_of_a_repeated_flag_counts(tmp_path):
    workdir.begin(tmp_path, "--style=a\n--style=b\n", overwrite=False)
    with pytest.raises(UserError, match=r"they differ in style\)"):
        workdir.begin(tmp_path, "--style=b\n--style=a\n", overwrite=False)


def test_flags_that_may_change_are_recorded_anew_and_not_named_with_others(tmp_path):
    workdir.begin(tmp_path, "--a=1\n--b=1\n--b=2\n", overwrite=False)
    with pytest.raises(UserError, match=r"they differ in a\)"):
        workdir.begin(tmp_path, "--a=2\n--b=3\n--c=4\n", overwrite=False, changeable=("b", "c"))
    assert (tmp_path / "run.flags").read_text() == "--a=1\n--b=1\n--b=2\n"
    assert (
        workdir.begin(tmp_path, "--a=1\n--b=3\n--c=4\n", overwrite=False, changeable=("b", "c"))
        == "unfinished"
    )
    assert (tmp_path / "run.flags").read_text() == "--a=1\n--b=3\n--c=4\n"


@pytest.mark.parametrize("record", [b"\xff\0", b"--a=1\n--"])
def test_a_record_that_is_no_text_or_was_cut_is_told_to_be_damaged(tmp_path, record):
    (tmp_path / "run.flags").write_bytes(record)
    with pytest.raises(UserError, match=r"its run\.flags is damaged"):
        workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    assert workdir.begin(tmp_path, "--a=1\n", overwrite=True) == "new"


def test_a_death_while_overwriting_leaves_nothing_that_passes_for_the_new_run(tmp_path, reaper):
    deaths = 0
    while True:
        directory = tmp_path / f"{deaths}"
        directory.mkdir()
        workdir.begin(directory, "--old\n", overwrite=False)
        Checkpoints(directory).save(1, {"image": np.ones(3)}, np.zeros((2, 7)))
        for name in ("manifest.json", "metrics.csv", "image.png"):
            (directory / name).write_text("old")
        reaper.folder, reaper.left = str(directory), deaths
        try:
            workdir.begin(directory, "--new\n", overwrite=True)
        except Killed:
            reaper.folder = None
        else:
            break
        finally:
            reaper.folder = None
        record = directory / "run.flags"
        if record.exists() and record.read_text() == "--old\n":
            with pytest.raises(UserError, match="other flags"):
                workdir.begin(directory, "--new\n", overwrite=False)
        assert workdir.begin(directory, "--new\n", overwrite=True) == "new"
        assert [path.name for path in directory.iterdir()] == ["run.flags"]
        deaths += 1
    assert deaths >= 6


@pytest.mark.parametrize("name", workdir.FILES)
def test_what_is_of_no_run_is_not_touched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"holds '{name}', which is of no run"):
            workdir.begin(tmp_path, "--a=1\n", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": 1}', "[" * 100_000, '{"status": "finished"}'])
def test_a_manifest_that_does_not_say_that_the_run_ended_means_that_it_did_not(tmp_path, text):
    workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    (tmp_path / "manifest.json").write_text(text)
    assert workdir.begin(tmp_path, "--a=1\n", overwrite=False) == "unfinished"


@pytest.mark.parametrize("name", workdir.FOLDERS)
def test_a_folder_that_is_of_no_run_is_not_touched(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"holds '{name}', which is of no run"):
            workdir.begin(tmp_path, "--a=1\n", overwrite=overwrite)
    assert (tmp_path / name / "file").read_text() == "mine"


def test_overwriting_deletes_what_any_command_wrote_and_nothing_else(tmp_path):
    workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    for name in workdir.FILES:
        (tmp_path / name).touch()
    for name in workdir.FOLDERS:
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    assert workdir.begin(tmp_path, "--b=1\n", overwrite=True) == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "run.flags"}


def test_the_lock_touches_no_file_of_the_users_and_leaves_none(tmp_path):
    (tmp_path / "lock").write_text("mine")
    with workdir.claimed(tmp_path):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("lock", "mine")]


@pytest.mark.parametrize("begun", [False, True])
def test_that_a_run_can_go_on_is_told_where_it_has_begun(tmp_path, begun):
    if begun:
        workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    with pytest.raises(UserError) as told, workdir.claimed(tmp_path):
        raise OSError(errno.ENOSPC, "No space left")
    assert ("goes on from it" in str(told.value)) == begun


def test_what_fails_in_a_claimed_directory_is_one_line_and_what_fails_elsewhere_is_not(tmp_path):
    for error in (
        OSError(errno.ENOSPC, "No space left"),
        OSError(errno.EIO, "No space left", tmp_path / "a/b"),
    ):
        with (
            pytest.raises(UserError, match=f"{tmp_path}: cannot write there: No space left"),
            workdir.claimed(tmp_path),
        ):
            raise error
    with pytest.raises(FileNotFoundError), workdir.claimed(tmp_path / "run"):
        (tmp_path / "elsewhere").read_text()


# --- what a run was made of --------------------------------------------------------------------------------------


def inputs(photo="1", weights="2"):
    return {"pictures": {"me.jpg": {"sha256": photo}}, "weights": {"name": "w", "sha256": weights}}


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_of_other_inputs_is_refused_by_their_names(tmp_path, ended):
    workdir.begin(tmp_path, "--a=1\n", overwrite=False, inputs=inputs())
    journal.write_manifest(tmp_path, inputs() | {"status": "finished" if ended else "running"})
    if ended:
        (tmp_path / "image.png").touch()
        (tmp_path / "metrics.csv").touch()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    word = "ended" if ended else "began"
    for now, name in ((inputs(photo="9"), "me.jpg"), (inputs(weights="9"), "weights")):
        with pytest.raises(UserError, match=f": {name} changed since the run there {word}; --overwrite"):
            workdir.begin(tmp_path, "--a=1\n", overwrite=False, inputs=now)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    known = workdir.begin(tmp_path, "--a=1\n", overwrite=False, inputs=inputs())
    assert known == ("finished" if ended else "unfinished")
    assert workdir.begin(tmp_path, "--a=1\n", overwrite=True, inputs=inputs(photo="9")) == "new"


def test_a_checkpoint_whose_inputs_nothing_tells_is_not_gone_on_from(tmp_path):
    workdir.begin(tmp_path, "--a=1\n", overwrite=False)
    Checkpoints(tmp_path).save(1, {"image": np.ones(3)}, np.zeros((2, 7)))
    assert workdir.begin(tmp_path, "--a=1\n", overwrite=False) == "unfinished"
    assert not list(tmp_path.glob("checkpoints/*"))


def test_another_environment_is_recorded_with_the_step_that_it_began_after(tmp_path, execute):
    def stop_at(step):
        def report(row):
            if row[0] == step:
                os.kill(os.getpid(), signal.SIGINT)

        return report

    def run(cores, at):
        execute(tmp_path, report=stop_at(at), seconds=1e9, manifest={"cores": cores})

    for cores, at in ((2, 1), (4, 2)):
        with pytest.raises(loop.Interrupted):
            run(cores, at)
    run(8, None)
    found = journal.read_manifest(tmp_path)
    assert found["cores"] == 8
    assert found["resumed"] == [
        {"step": 1, "differs": {"cores": [2, 4]}},
        {"step": 2, "differs": {"cores": [4, 8]}},
    ]


def test_steps_that_are_made_anew_leave_no_trace_of_their_environment():
    changed = [{"step": 2, "differs": {"cores": [1, 2]}}, {"step": 5, "differs": {"cores": [2, 4]}}]
    before = {"cores": 4, "resumed": changed}
    assert journal.resumed(before, {"cores": 2}, 5) == changed[:1]
    assert journal.resumed(before, {"cores": 1}, 2) == []
    assert journal.resumed(before, {"cores": 4}, 6) == changed
    assert journal.resumed(before, {"cores": 8}, 4) == [changed[0], {"step": 4, "differs": {"cores": (2, 8)}}]


# --- files --------------------------------------------------------------------------------------------------------


def test_rows_come_back_from_their_table_to_the_bit(tmp_path):
    losses = np.random.default_rng(0).lognormal(0, 40, (9, 4)).astype(np.float32)
    rows = np.column_stack([np.arange(9), np.arange(9) + 1, np.arange(9) / 8, losses])
    journal.write_metrics(tmp_path / "metrics.csv", rows)
    np.testing.assert_array_equal(
        np.float32(journal.read_metrics(tmp_path / "metrics.csv")), np.float32(rows)
    )
    assert (
        (tmp_path / "metrics.csv").read_text().startswith("step,evaluations,seconds,total,content,style,tv\n")
    )


def test_readers_see_the_old_file_or_the_new_one(tmp_path):
    path, seen, done = tmp_path / "file", set(), threading.Event()
    contents = [letter * 100_000 for letter in (b"a", b"b")]
    files.write_atomically(path, contents[0])

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(50):
        files.write_atomically(path, contents[k % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_a_manifest_holds_any_file_name(tmp_path):
    name = os.fsdecode(b"\xff\n\"<script>'") + "é☃"
    journal.write_manifest(tmp_path, {"pictures": {name: 1}})
    assert journal.read_manifest(tmp_path) == {"pictures": {name: 1}}
    assert "é☃" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


def test_the_environment_tells_what_decides_the_bits():
    found = journal.environment()
    assert {"jax", "jaxlib", "flax", "optax", "jaxopt", "python"} <= set(found["versions"])
    assert found["backend"] == "cpu"
    assert len(found["code_sha256"]) == 64
    assert json.loads(json.dumps(found)) == found


def test_on_a_gpu_the_libraries_that_compute_there_decide_the_bits_too(monkeypatch, tmp_path):
    for name, version in (("nvidia_cudnn_cu12", "9.8.0"), ("jax_cuda12_plugin", "0.10.2"), ("other", "1")):
        record = tmp_path / f"{name}-{version}.dist-info" / "METADATA"
        record.parent.mkdir()
        record.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    without, found = journal.environment()["versions"], journal._versions("gpu")
    more = {name: version for name, version in found.items() if name not in without}
    assert more.items() >= {("nvidia-cudnn-cu12", "9.8.0"), ("jax-cuda12-plugin", "0.10.2")}
    assert "other" not in more


# --- where a run goes that is given no folder ---------------------------------------------------------------------


def test_a_run_finds_its_folder_again_and_leaves_that_of_another(tmp_path):
    def find(flags, **options):
        directory = workdir.find(tmp_path, "portrait-night", flags, **options)
        with workdir.claimed(directory):
            workdir.begin(directory, flags, overwrite=False, **options)
        return directory.name

    assert find("--a=1\n--b=1\n") == "portrait-night"
    assert find("--a=2\n--b=1\n") == "portrait-night-2"
    assert find("--a=1\n--b=1\n") == "portrait-night"
    assert find("--a=2\n--b=1\n") == "portrait-night-2"
    assert find("--a=1\n--b=3\n", changeable=("b",)) == "portrait-night"


def test_a_folder_or_a_file_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "a-b").mkdir()
    (tmp_path / "a-b" / "notes.txt").touch()
    (tmp_path / "a-b-2").touch()
    (tmp_path / "a-b-3").mkdir()
    assert workdir.find(tmp_path, "a-b", "--a=1\n").name == "a-b-3"


def test_any_name_becomes_one_that_a_file_can_have(tmp_path):
    assert workdir.find(tmp_path, "../ü b\n", "").name == "_ü_b_"
    assert workdir.find(tmp_path, "..", "").name == "run"
