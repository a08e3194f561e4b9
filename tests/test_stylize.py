"""The stylize command from end to end: its files, its repeatability, its words for failure, its signals."""

import importlib.util
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from types import SimpleNamespace

import narrow
import numpy as np
import pytest
import tifffile
from kill import ROOT, make_pictures, results
from PIL import Image

from experiments import programs, task
from experiments.cache import Cache
from experiments.settings import Settings
from jaxstyle.images import color, pictures
from jaxstyle.network import weights
from jaxstyle.runs import journal, memory

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stylize")


@pytest.fixture(scope="module")
def start(folder):
    """Starts the command on a narrow network, with pictures and few layers unless the first flag names others."""
    pictures = make_pictures(folder)

    def start(*arguments, **environment):
        shared = ["--size=32", "--convolution=direct"]
        if not arguments[0].startswith(("--flagfile", "--content")):
            shared += [*pictures, *narrow.FEW]
        return narrow.Process("experiments.stylize", *shared, *arguments, **environment)

    return start


@pytest.fixture(scope="module")
def stylize(start):
    """Runs the command to its end: exit status, standard output, standard error without progress bars."""

    def run(*arguments, **environment):
        process = start(*arguments, **environment)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return run


@pytest.fixture(scope="module")
def whole(folder, stylize):
    """A run that nothing disturbed."""
    status, _, errors = stylize(f"--steps={STEPS}", f"--workdir={folder / 'whole'}")
    assert status == 0, errors
    return folder / "whole"


def checkpoints(workdir):
    """The steps of its whole checkpoints."""
    return {path.name for path in workdir.glob("checkpoints/*") if path.name.isdecimal()}


def start_until_checkpoint(start, workdir, *more, after=0):
    """A process that has written a checkpoint after a step, and the flags that go on from it."""
    flags = (f"--steps={STEPS}", *more, f"--workdir={workdir}", "--checkpoint_seconds=0")
    process = start(*flags)
    rows = workdir / "metrics.csv"  # written after the checkpoint
    process.until(lambda: any(int(step) > after for step in checkpoints(workdir)) and rows.exists())
    return process, flags


def assert_goes_on(stylize, flags, workdir, last):
    """The command ends the run, and what it had up to a step is not made again: it keeps its seconds."""
    before = journal.read_metrics(workdir / "metrics.csv")[: last + 1]
    status, _, errors = stylize(*flags)
    assert status == 0, errors
    np.testing.assert_array_equal(journal.read_metrics(workdir / "metrics.csv")[: len(before)], before)


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def test_a_run_leaves_the_files_of_the_contract(whole):
    assert {path.name for path in whole.iterdir()} == {
        *("run.flags", "manifest.json", "metrics.csv", "image.png", "losses.png", "checkpoints")
    }
    lines = (whole / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,evaluations,seconds,total,content,style,tv"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(STEPS + 1))
    with Image.open(whole / "image.png") as image:
        assert image.size == (32, 24)
        assert image.text["Comment"] == (whole / "run.flags").read_text()
    found = manifest(whole)
    assert found["status"] == "finished"
    assert {"python", "jax", "jaxlib", "flax", "optax", "jaxopt"} <= set(found["versions"])
    assert found["evaluations"] == int(lines[-1].split(",")[1])


def test_its_record_makes_it_again_and_a_finished_run_is_not_done_again(folder, whole, stylize):
    again = folder / "again"
    status, _, errors = stylize(
        f"--flagfile={whole / 'run.flags'}", f"--workdir={again}", "--checkpoint_seconds=0"
    )
    assert status == 0, errors
    assert results(again) == results(whole)
    before = {path: path.stat().st_mtime_ns for path in again.glob("*.*")}
    status, output, _ = stylize(f"--flagfile={whole / 'run.flags'}", f"--workdir={again}")
    assert (status, "finished before" in output) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in again.glob("*.*")} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_the_same_command_goes_on(folder, whole, start, stylize, number):
    workdir = folder / f"signal{number}"
    process, flags = start_until_checkpoint(start, workdir)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    if manifest(workdir)["status"] != "finished":  # it came in the last step
        assert manifest(workdir)["status"] == "interrupted"
    assert_goes_on(stylize, flags, workdir, manifest(workdir)["steps_done"])
    assert results(workdir) == results(whole)


def test_a_run_goes_on_with_what_its_image_chose_of_the_style_when_its_size_began(folder, start, stylize):
    flags = ("--style_loss=nearest", "--scales=2", "--optimizer=adam:learning_rate=5")
    process, given = start_until_checkpoint(start, folder / "chose", *flags, after=STEPS // 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert_goes_on(stylize, given, folder / "chose", manifest(folder / "chose")["steps_done"])
    assert stylize(f"--steps={STEPS}", *flags, f"--workdir={folder / 'chosen'}")[0] == 0
    assert results(folder / "chose") == results(folder / "chosen")


def test_a_picture_to_go_on_from_chooses_of_the_style_with_the_photo_or_alone(folder, stylize):
    found = {}
    for name in ("nearest", "split"):
        workdir = folder / f"own-{name}"
        given = (
            f"--style_loss={name}",
            f"--init={folder / 'style.png'}",
            "--steps=1",
            f"--workdir={workdir}",
        )
        status, _, errors = stylize(*given)
        assert status == 0, errors
        first = (workdir / "metrics.csv").read_text().splitlines()[:2]
        found[name] = float(dict(zip(*(line.split(",") for line in first), strict=True))["style"])
    # By features of its own the style picture finds itself, but for the mean over turns that it is compared less.
    assert 0 <= found["split"] < 0.1 * found["nearest"]


def test_a_run_of_so_many_evaluations_is_the_beginning_of_a_longer_one(folder, start, stylize):
    """Conjugate gradients take several evaluations in some steps, so that the last may go past what was asked."""
    flags = ("--optimizer=nonlinear-cg", "--steps=12", "--scales=1")
    capped, whole = folder / "capped", folder / "uncapped"
    process, given = start_until_checkpoint(start, capped, *flags[:1], "--evaluations=8", after=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert_goes_on(stylize, given, capped, manifest(capped)["steps_done"])
    assert stylize(*flags, f"--workdir={whole}")[0] == 0
    rows, longer = journal.read_metrics(capped / "metrics.csv"), journal.read_metrics(whole / "metrics.csv")
    assert rows[-2, 1] < 8 <= rows[-1, 1]
    np.testing.assert_array_equal(np.delete(rows, 2, 1), np.delete(longer[: len(rows)], 2, 1))
    assert manifest(capped)["steps_done"] == len(rows) - 1 < manifest(whole)["steps_done"]


def test_a_signal_while_xla_compiles_ends_the_process_at_once(folder, start):
    flags = ("--compilation_cache=", "--size=48", f"--workdir={folder / 'compiling'}")
    process = start(*make_pictures(folder), *flags)
    assert process.stdout.readline() == "compiling …\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert time.monotonic() - begun < 1.5
    assert errors == "interrupted by SIGTERM; the same command starts again\n"


def test_ctrl_c_while_a_command_is_imported_ends_it_though_a_library_would_swallow_it(tmp_path):
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl" / "__init__.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1)\n"
        "except KeyboardInterrupt:\n    pass\n"
        "raise SystemExit(0)\n"
    )
    arguments = [sys.executable, "-m", "experiments.stylize"]
    # What a shell has in the background ignores SIGINT, and so would what it starts.
    heard = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    code = f"{heard}; os.execv({sys.executable!r}, {arguments})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_the_second_process_on_a_workdir_says_who_holds_it(folder, start, stylize):
    workdir = folder / "held"
    flags = ("--steps=100000", f"--workdir={workdir}")
    process = start(*flags)
    process.until((workdir / "run.flags").exists)
    status, _, errors = stylize(*flags)
    assert status == 2
    assert f"process {process.pid}" in errors
    process.kill()
    process.communicate()
    assert str(process.pid) in (workdir / ".jaxstyle.lock").read_text()  # stale now
    successor = start(*flags)
    assert successor.stdout.readline() == "compiling …\n"
    successor.kill()
    successor.communicate()


def test_a_full_disk_ends_a_run_with_one_line_and_keeps_the_last_checkpoint(folder, whole, start, stylize):
    workdir = folder / "full"
    process, flags = start_until_checkpoint(start, workdir)
    process.kill()
    process.communicate()
    kept = checkpoints(workdir)
    process = start(*flags)
    limit = 20_000  # bytes of a file
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in errors
    line = f"stylize: --workdir={workdir}: cannot write there: File too large; what is there is kept"
    assert line in errors.splitlines()[-1]
    assert checkpoints(workdir) == kept
    assert_goes_on(stylize, flags, workdir, max(map(int, kept)))
    assert results(workdir) == results(whole)


def test_a_run_does_not_depend_on_its_reader(folder, whole, start):
    process = start(f"--steps={STEPS}", f"--workdir={folder / 'unread'}")
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert results(folder / "unread") == results(whole)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_under_the_output_is_told_by_that_name(folder, whole, start):
    workdir, changed = folder / "unsaid", folder / "changed"
    shutil.copytree(whole, changed)
    (changed / "manifest.json").write_text(json.dumps(manifest(whole) | {"cpu": "another"}))
    photos = f"--content={folder}/*t*.png", f"--style={folder / 'style.png'}", *narrow.FEW
    with open("/dev/full", "w") as full:
        unsaid = {
            "one photo": start("--steps=1", f"--workdir={workdir}", stdout=full),
            "photos": start(*photos, "--steps=1", f"--workdir={workdir}", stdout=full),
            "help": start("--helpshort", stdout=full),
            "what differs": narrow.Process("experiments.verify", f"--workdir={changed}", stdout=full),
        }
        untold = start(f"--steps={STEPS}", f"--workdir={folder / 'untold'}", stderr=full)
        for process in unsaid.values():
            process.stdout = None  # nothing can be read there
            command = "verify" if process is unsaid["what differs"] else "stylize"
            said = f"{command}: standard output: cannot be written: No space left on device\n"
            assert (process.communicate()[1], process.returncode) == (said, 2)
        untold.stderr = None
        output, _ = untold.communicate()
    assert (output.splitlines()[-1], untold.returncode) == (f"picture: {folder / 'untold/image.png'}", 0)
    assert results(folder / "untold") == results(whole)


def test_a_finished_run_whose_photo_has_changed_says_so(folder, stylize):
    photo, workdir = folder / "photo.png", folder / "photographed"
    flags = (f"--content={photo}", *narrow.FEW, "--steps=1", f"--workdir={workdir}")
    Image.new("RGB", (32, 24), (50, 100, 200)).save(photo)
    assert stylize(*flags)[0] == 0
    Image.new("RGB", (32, 24), (51, 100, 200)).save(photo)
    status, _, errors = stylize(*flags)
    assert status == 2
    assert f"{photo} changed since the run there ended" in errors
    assert stylize(*flags, "--overwrite")[0] == 0


def test_a_run_that_diverges_keeps_its_finite_rows_and_says_what_helps(folder, stylize):
    workdir = folder / "diverged"
    flags = ("--optimizer=gd:learning_rate=1e6", f"--workdir={workdir}")
    status, output, errors = stylize(*make_pictures(folder), *flags)
    assert status == 0, errors
    assert "diverged at step" in output
    assert "smaller learning rate" in output
    rows = np.loadtxt(workdir / "metrics.csv", delimiter=",", skiprows=1, ndmin=2)
    assert np.isfinite(rows).all()
    assert manifest(workdir)["status"] == "diverged"
    assert manifest(workdir)["steps_done"] == len(rows) - 1 < 80
    assert (workdir / "image.png").exists()


def test_any_file_name_goes_through_every_output_and_back(folder, whole, stylize):
    odd = folder / "--x"
    odd.mkdir()
    names = [" a\nb \"'<script>=1&#%é☃ ", os.fsdecode(b"\xff:2.png")]
    for name, original in zip(names, ("content", "style"), strict=True):
        (odd / name).write_bytes((folder / f"{original}.png").read_bytes())
    first, second = folder / "odd1\n\x1b", folder / "odd2"
    status, _, errors = stylize(
        *(f"--content={odd / names[0]}", f"--style={odd / names[1]}"),
        *(f"--steps={STEPS}", f"--workdir={first}", *narrow.FEW),
    )
    assert status == 0, errors
    assert results(first)["metrics.csv"] == results(whole)["metrics.csv"]
    assert set(manifest(first)["pictures"]) == {str(odd / name) for name in names}
    status, _, errors = stylize(f"--flagfile={first / 'run.flags'}", f"--workdir={second}")
    assert status == 0, errors
    assert results(second) == results(first)
    measured = narrow.run("experiments.measure", f"--result={first}", check=True)
    assert json.loads(measured.stdout)["result"] == str(first)


BAD = {
    "a flag that there is not": (["--contents=a.png"], "contents"),
    "a word that is no flag": (["a.png"], "a.png"),
    "a missing picture": (["--content=missing.png"], "missing.png"),
    "a folder as a picture": (["--style=."], "directory"),
    "an empty file": (["--content={folder}/empty.png"], "empty"),
    "a file that is no picture": (["--content={folder}/words.png"], "not a picture"),
    "a truncated picture": (["--content={folder}/half.png"], "half.png"),
    "a picture of one pixel": (["--content={folder}/pixel.png"], "1x1"),
    "a missing start image": (["--init=missing.png"], "missing.png"),
    "an unknown layer": (["--style_layer=block9_conv1"], "block1_conv1"),
    "a negative weight of a layer": (["--content_layer=block4_conv2:-1"], "0 or more"),
    "an unknown optimizer": (["--optimizer=adamm"], "adam"),
    "an unknown hyperparameter": (["--optimizer=adam:rate=1"], "learning_rate"),
    "a hyperparameter that is no number": (["--optimizer=adam:learning_rate=fast"], "fast"),
    "a size that a layer shrinks to nothing": (["--size=8"], "16 pixels"),
    "a size that is none": (["--size=big"], "longer side"),
    "a negative weight": (["--style_weight=-1"], "style_weight"),
    "a weight that float32 cannot hold with a layer's": (["--style_weight=1e38"], "style_weight"),
    "no steps": (["--steps=0"], "steps"),
    "a seed out of range": (["--seed=-1"], "seed"),
    "as many masks as nothing": (["--content_mask=a.png", "--content_mask=b.png"], "content_mask: 2"),
    "a missing mask": (["--content_weight_mask=missing.png"], "missing.png"),
    "a mask that is black": (["--content_mask={folder}/black.png"], "black all over"),
    "a clip that SciPy cannot": (["--clip", "--optimizer=scipy-lbfgs"], "scipy-lbfgs"),
    "scales of the study's loss": (["--loss=ivanov2017", "--scales=2"], "--scales"),
    "a style loss that the study had not": (["--loss=ivanov2017", "--style_loss=mrf"], "--style_loss"),
    "a content loss that the study had not": (
        ["--loss=ivanov2017", "--content_loss=self_similarity"],
        "--content_loss",
    ),
    "Winograd's in half precision": (
        ["--convolution=winograd", "--precision=bfloat16"],
        "--precision=bfloat16",
    ),
    "strips of what is no sum": (["--style_loss=mrf", "--strips=2"], "--strips=2"),
    "a product at its least": (["--total=product"], "--init=noise"),
    "a product of the study's": (["--loss=ivanov2017", "--init=noise", "--total=product"], "--total=product"),
    "strips of a product": (["--total=product", "--init=noise", "--strips=2"], "--strips=2"),
    "strips of similarities": (["--content_loss=self_similarity", "--strips=2"], "--strips=2"),
    "one palette for several regions": (
        ["--preserve_color=palette", "--regions=2"],
        "--preserve_color=palette",
    ),
    "one palette for a part of a picture": (
        ["--preserve_color=palette", "--style_mask={folder}/content.png"],
        "--preserve_color=palette",
    ),
    "a share that float32 cannot hold": (
        ["--style=sample:night:1e39"],
        "--style=sample:night:1e39: the share",
    ),
    "shares for what is nearest": (
        ["--style_loss=mrf", "--style=sample:night:2", "--style=sample:facets"],
        "--style=sample:night:2",
    ),
    "a coarsest size that is too small": (["--scales=14"], "16 pixels"),
    "a number that is none": (["--checkpoint_seconds=nan"], "checkpoint_seconds"),
    "scales of a number of evaluations": (["--scales=2", "--evaluations=9"], "--scales=2: --evaluations"),
    "no evaluations": (["--evaluations=0"], "evaluations"),
    "more scales than steps": (["--scales=3", "--steps=2"], "--steps=2"),
    "a style without a name": (["--style="], "--style=: names no picture"),
    "a start without a name": (["--init="], "--init=: no such file, and no start image"),
    "12 bits": (["--bits=12"], "8 or 16"),
    "a folder without pictures": (["--content={folder}/nothing"], "no picture"),
    "one output for several photos": (
        ["--content={folder}/*t*.png", "--output=a.png"],
        "--output=a.png: is for one photo",
    ),
    "an output that is a file of a run": (["--output={folder}/run/image.png"], "is the image.png of a run"),
    "an output that is a file of the run to be made": (
        ["--workdir={folder}/nothing", "--output={folder}/nothing/losses.png"],
        "is the losses.png of a run",
    ),
    "an output that is a folder": (["--output={folder}/folder.png"], "folder.png': cannot be written"),
    "a start image of no such name": (["--init=Noise"], "--init=Noise: no such file, and no start image"),
    "missing weights": (["--weights=missing.h5"], "vgg16-torchvision"),
    "a pickle as weights": (["--weights={folder}/weights.pt"], "could run code"),
    "a workdir of no name": (["--workdir="], "--workdir="),
    "a workdir that is a file": (["--workdir={folder}/words.png"], "words.png"),
    "a value of two lines": (["--optimizer=adam:learning_rate=1,\nb1=0.9"], "one line"),
    "a name that no system takes": (["--content={folder}/" + 300 * "x"], "xxx"),
    "a flagfile that is not there": (["--flagfile=missing.flags"], "missing.flags"),
    "a flagfile that is no text": (["--flagfile={folder}/pixel.png"], "decode"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of files that are no good, and flags that name two that are."""
    folder = tmp_path_factory.mktemp("bad")
    flags = make_pictures(folder)
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("no picture")
    (folder / "half.png").write_bytes((folder / "content.png").read_bytes()[:1000])
    (folder / "weights.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("L", (20, 20)).save(folder / "black.png")
    for name in ("nothing", "folder.png", "run"):
        (folder / name).mkdir()
    (folder / "run/run.flags").touch()
    return folder, flags


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_gets_one_line_and_status_2(bad, mistake):
    (folder, flags), (arguments, named) = bad, BAD[mistake]
    names = {path.name for path in folder.iterdir()}
    given = (text.format(folder=folder) for text in arguments)
    told = narrow.refused("experiments.stylize", *flags, f"--workdir={folder / 'new'}", *given, cwd=folder)
    assert told.startswith("stylize: ")
    assert named in told
    assert {path.name for path in folder.iterdir()} == names  # nothing is written


# --- controls -----------------------------------------------------------------------------------------------------


def test_from_coarse_to_fine_with_snapshots_and_the_photos_colours(folder, stylize):
    workdir, output = folder / "fine", folder / "fine.tiff"
    status, _, errors = stylize(
        *(
            "--scales=2",
            "--steps=7",
            "--save_every=3",
            "--preserve_color=luminance",
            "--bits=16",
            "--size=40",
        ),
        *(
            "--clip",
            "--keep=best",
            "--optimizer=adam:learning_rate=5",
            f"--workdir={workdir}",
            f"--output={output}",
        ),
    )
    assert status == 0, errors
    rows = (workdir / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(8))
    assert [int(row.split(",")[1]) for row in rows] == [1, 2, 3, 4, 6, 7, 8, 9]
    sizes = {}
    for path in (workdir / "snapshots").iterdir():
        with Image.open(path) as snapshot:
            sizes[path.name] = snapshot.size
    assert sizes == {"000000.png": (28, 21), "000003.png": (28, 21), "000006.png": (40, 30)}
    with Image.open(workdir / "animation.webp") as animation:
        assert animation.size == (40, 30)
        assert animation.n_frames in (3, 4)  # frames that look alike are one
    made = tifffile.imread(output)
    assert (made.dtype, made.shape) == (np.uint16, (30, 40, 3))
    with Image.open(folder / "content.png") as photo:
        _, *chroma = photo.resize((40, 30), Image.Resampling.LANCZOS).convert("YCbCr").split()
    with Image.open(workdir / "image.png") as picture:
        _, *kept = picture.convert("YCbCr").split()
    for before, after in zip(chroma, kept, strict=True):
        assert np.abs(np.asarray(before, int) - np.asarray(after, int)).mean() < 4


def test_the_photos_hues_in_the_palette_of_two_styles(folder, stylize):
    """What is optimised is the same; the picture alone is another."""
    photo, own, moved = folder / "content.png", folder / "hues-own", folder / "hues"
    flags = f"--content={photo}", "--steps=2", *narrow.FEW, f"--style={folder / 'style.png'}:3"
    flags = (*flags, "--style=sample:facets")
    for workdir, more in ((own, ()), (moved, ("--preserve_color=palette",))):
        status, _, errors = stylize(*flags, f"--workdir={workdir}", *more)
        assert status == 0, errors
    styles = [(pictures.read(folder / "style.png", 32), 3.0), (pictures.read("sample:facets", 32), 1.0)]
    result, found = (pictures.read(workdir / "image.png") for workdir in (own, moved))
    expected = color.to_palette(pictures.read(photo, 32), styles)(result)
    np.testing.assert_allclose(found, expected, atol=2)  # of rounding before and after
    assert np.abs(found - result).mean() > 5


@pytest.mark.parametrize(("name", "kept"), [("wasserstein", "squares"), ("nearest", "self_similarity")])
def test_masks_say_where_a_style_goes(name, kept, folder, stylize):
    for side, box in (("left", (0, 0, 32, 48)), ("right", (32, 0, 64, 48))):
        mask = Image.new("L", (64, 48))
        mask.paste(255, box)
        mask.save(folder / f"{side}.png")
    style, workdir = folder / "style.png", folder / f"masked {name}"
    status, _, errors = stylize(
        *(f"--style={style}", f"--content_mask={folder}/left.png", f"--content_mask={folder}/right.png"),
        *(f"--content_weight_mask={folder}/left.png", "--style_mask=", f"--style_mask={folder}/right.png"),
        *(f"--style_loss={name}", "--pooling=average", "--style_scale=0.8", "--init=style_statistics"),
        *(f"--content_loss={kept}", "--steps=3", f"--workdir={workdir}"),
    )
    assert status == 0, errors
    named = manifest(workdir)["pictures"]
    assert {pathlib.Path(path).name for path in named} == {
        "content.png",
        "style.png",
        "left.png",
        "right.png",
    }
    again = folder / f"masked {name} again"
    assert stylize(f"--flagfile={workdir / 'run.flags'}", f"--workdir={again}")[0] == 0
    assert results(again) == results(workdir)


def test_a_folder_of_photos_makes_a_picture_of_each(folder, stylize):
    photos, workdir = folder / "photos", folder / "many"
    photos.mkdir()
    shutil.copy(folder / "content.png", photos / "a.png")
    with Image.open(folder / "style.png") as picture:
        picture.rotate(90, expand=True).save(photos / "b.jpg")
    (photos / "notes.txt").write_text("no photo")
    (photos / "._a.jpg").write_bytes(b"of macOS")
    flags = f"--style={folder / 'style.png'}", *narrow.FEW, "--steps=3"
    status, output, errors = stylize(f"--content={photos}", *flags, f"--workdir={workdir}")
    assert status == 0, errors
    assert {path.name for path in workdir.iterdir()} == {"a.png", "b.jpg"}
    alone = folder / "alone"
    assert stylize(f"--content={photos / 'b.jpg'}", *flags, f"--workdir={alone}")[0] == 0
    assert results(workdir / "b.jpg") == results(alone)
    status, output, _ = stylize(f"--content={photos}/*.png", *flags, f"--workdir={workdir}")
    assert (status, output.count("finished before")) == (0, 1)
    shutil.copy(folder / "style.png", photos / "a.png")
    shutil.copy(folder / "content.png", photos / "c.png")
    status, output, errors = stylize(f"--content={photos}", *flags, f"--workdir={workdir}")
    assert (status, output.count("finished before")) == (2, 1)
    assert "1 of 3 photos were not painted" in errors
    assert "changed since the run there ended" in errors
    assert (workdir / "c.png" / "image.png").exists()


@pytest.mark.parametrize("optimizer", ["lbfgs", "scipy-lbfgs"])
def test_photos_that_share_programs_are_painted_as_each_alone(folder, stylize, optimizer):
    """From the second size on each has its own part in what is taken of the style; and one its own first size."""
    photos, workdir = folder / f"photos-{optimizer}", folder / f"many-{optimizer}"
    photos.mkdir()
    with Image.open(folder / "content.png") as picture:
        for name, size, turn in (("a", (64, 48), 0), ("b", (64, 48), 180), ("c", (64, 49), 0)):
            picture.resize(size).rotate(turn).save(photos / f"{name}.png")
    flags = (
        f"--style={folder / 'style.png'}",
        *narrow.FEW,
        "--style_loss=nearest",
        "--scales=2",
        "--steps=4",
        "--size=32",
    )
    flags = (*flags, f"--optimizer={optimizer}", "--parametrization=pixels")
    status, _, errors = stylize(f"--content={photos}", *flags, f"--workdir={workdir}")
    assert status == 0, errors
    for name in ("b.png", "c.png"):
        alone = folder / f"alone-{optimizer}-{name}"
        assert stylize(f"--content={photos / name}", *flags, f"--workdir={alone}")[0] == 0
        assert results(workdir / name) == results(alone)


def test_the_targets_of_a_style_are_computed_once_for_all_photos(folder, random_network, monkeypatch):
    monkeypatch.setattr(weights, "load", lambda name: weights.Weights(name, "vgg16", random_network, ""))
    photo, style = (flag.partition("=")[2] for flag in make_pictures(folder))
    layers = {"content_layer": ["block2_conv1"], "style_layer": ["block1_conv1"], "style_loss": "gram"}
    given, cache = {"style": [style], "size": "32x32", "scales": 1} | layers, Cache()
    one, other = (task.pose(Settings(content=each, **given), cache).problem(0) for each in (photo, style))
    assert one.regions is other.regions
    assert np.any(one.content_targets["block2_conv1"] != other.content_targets["block2_conv1"])


@pytest.mark.parametrize("weights", ["vgg16-torchvision", "vgg16-keras"])
@pytest.mark.parametrize(("loss", "own"), [("gatys", "vgg16-torchvision"), ("ivanov2017", "vgg16-keras")])
def test_losses_of_another_network_than_their_weights_are_for_are_told_of(
    folder, stylize, loss, own, weights
):
    flags = f"--loss={loss}", f"--weights={weights}", *narrow.FEW, "--style_loss=gram", "--steps=1"
    status, _, errors = stylize(*flags, f"--workdir={folder / f'{loss}-{weights}'}")
    assert status == 0, errors
    assert (f"belong to --weights={own}" in errors) == (weights != own)


def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(folder, stylize):
    workdir = folder / "dry"
    flags = ("--dry_run", "--scales=2", f"--workdir={workdir}")
    status, output, errors = stylize(*make_pictures(folder), *flags)
    assert status == 0, errors
    assert not workdir.exists()
    for words in ("size: 23x17, 32x24", "block5_conv1", "GiB", "evaluations: ", "time: about"):
        assert words in output


def test_a_dry_run_counts_the_evaluations_with_which_a_run_ends_and_its_strips(folder, stylize):
    flags = "--dry_run", "--evaluations=3", "--strips=2"
    status, output, errors = stylize(*flags, f"--workdir={folder / 'few'}")
    assert status == 0, errors
    assert "evaluations: 3 at least" in output
    assert "strips: 2" in output.splitlines()


@pytest.mark.parametrize("evaluations", [None, 5])
def test_a_dry_run_of_one_large_size_tries_a_small_one(evaluations, folder, random_network, monkeypatch):
    """Of 8192 pixels at once a step takes minutes, and its memory may not be there."""
    monkeypatch.setattr(weights, "load", lambda name: weights.Weights(name, "vgg16", random_network, ""))
    photo, style = (flag.partition("=")[2] for flag in make_pictures(folder))
    given = Settings(content=photo, style=[style], size="160", steps=1, scales=1, evaluations=evaluations)
    posed = task.pose(given, cache := Cache())
    smaller = task.beginning_at(40 * 40, posed, cache)
    assert [shape[1] for shape in posed.shapes] == [160]
    assert [shape[1] for shape in smaller.shapes] == [57, 80, 113, 160]
    assert task.beginning_at(160 * 160, posed, cache) is posed


def test_the_time_of_an_evaluation_is_that_of_most_steps(monkeypatch):
    """One step is easily disturbed; of these, of two evaluations each, one takes 9 seconds."""
    clock = iter([0.0, 2.0, 2.0, 11.0, 11.0, 14.0])
    monkeypatch.setattr(programs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    state = namedtuple("State", ["evaluations"])
    ready = SimpleNamespace(step=lambda problem, before: (state(before.evaluations + 2), None))
    assert programs.seconds_of_evaluation(ready, None, state(1)) == 1.5


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (["--size=250"], "250x188"),
        (["--size=256"], "181x136, 256x192"),
        (["--size=256", "--scales=1"], "256x192"),
        (["--size=256", "--steps=1"], "256x192"),
        (["--size=256", "--init={folder}/content.png"], "256x192"),
        (["--size=363x40", "--loss=ivanov2017"], "363x40"),
    ],
)
def test_a_large_picture_begins_at_a_size_of_180_pixels_or_more(folder, stylize, flags, sizes):
    flags = [flag.format(folder=folder) for flag in flags]
    status, output, errors = stylize("--dry_run", *flags, f"--workdir={folder / 'sizes'}")
    assert status == 0, errors
    assert output.splitlines()[0] == f"size: {sizes}"


def test_a_workdir_of_another_run_is_refused_unless_overwritten(folder, whole, stylize):
    workdir = folder / "other"
    assert stylize("--steps=1", f"--workdir={workdir}")[0] == 0
    before = results(workdir)
    status, _, errors = stylize("--steps=2", "--seed=1", f"--workdir={workdir}")
    assert status == 2
    assert "seed, steps" in errors
    assert results(workdir) == before
    assert stylize(f"--steps={STEPS}", f"--workdir={workdir}", "--overwrite")[0] == 0
    assert results(workdir) == results(whole)


def test_what_cannot_run_or_is_made_of_the_run_itself_overwrites_nothing(folder, whole, stylize):
    workdir = shutil.copytree(whole, folder / "precious")
    before = results(workdir)
    for flags, named in (
        (["--strips=2", "--devices=2"], "--strips=2"),
        ([f"--init={workdir / 'image.png'}"], "image.png"),
    ):
        status, _, errors = stylize("--steps=1", *flags, f"--workdir={workdir}", "--overwrite")
        assert (status, len(errors.splitlines())) == (2, 1), errors
        assert named in errors
        assert results(workdir) == before


def test_what_is_overwritten_leaves_the_next_run_no_strips(folder, stylize):
    workdir = folder / "strips"
    assert stylize("--steps=1", "--strips=2", f"--workdir={workdir}")[0] == 0
    assert stylize("--steps=1", f"--workdir={workdir}", "--overwrite")[0] == 0
    assert "--strips=1\n" in (workdir / "run.flags").read_text()


def test_strays_and_links_among_checkpoints_stop_nothing(folder, whole, stylize):
    workdir = shutil.copytree(whole, folder / "strays")
    (workdir / "checkpoints/.DS_Store").touch()
    flags = f"--steps={STEPS}", f"--workdir={workdir}"
    status, output, errors = stylize(*flags)
    assert (status, "finished before" in output) == (0, True), errors
    shutil.move(workdir / "checkpoints", folder / "scratch")
    (workdir / "checkpoints").symlink_to(folder / "scratch")
    assert stylize(*flags, "--overwrite")[0] == 0
    assert results(workdir) == results(whole)


def test_a_picture_that_a_run_is_made_of_is_not_written_over(folder, stylize):
    photo = folder / "mine.png"
    shutil.copy(folder / "content.png", photo)
    before, flags = (
        photo.read_bytes(),
        (f"--content={photo}", "--style=sample:night", *narrow.FEW, "--steps=1"),
    )
    for output in (photo, folder / "stylize.png"):
        if output != photo:
            output.symlink_to(photo)
        status, _, errors = stylize(*flags, f"--workdir={folder / 'into'}", f"--output={output}")
        assert (status, len(errors.splitlines())) == (2, 1), errors
        assert f"--output={output}" in errors
    assert photo.read_bytes() == before
    assert not (folder / "into").exists()


def test_a_folder_in_which_another_run_began_and_ended_meanwhile_is_left_to_it(tmp_path):
    code = """
from experiments import launch
from jaxstyle.runs import workdir
taken = []

def work(directory):
    if not taken:  # found free, and taken before it is claimed
        directory.mkdir(parents=True)
        (directory / "run.flags").write_text("--seed=1\\n")
    taken.append(directory.name)
    with workdir.claimed(directory):
        workdir.begin(directory, "--seed=2\\n", overwrite=False)

launch.in_workdir(None, "me", "--seed=2\\n", (), work)
print(taken)
"""
    done = narrow.run("-c", code, cwd=tmp_path)
    assert done.stdout == "['me', 'me-2']\n", done.stderr


def test_runs_that_start_at_once_without_a_workdir_have_one_each(folder, start, tmp_path):
    runs = [start("--steps=2", f"--seed={seed}", cwd=tmp_path) for seed in (1, 2, 3)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in runs]
    assert [status for _, status in ends] == [0, 0, 0], ends
    made = sorted(path.read_text().split("--seed=")[1][0] for path in tmp_path.glob("runs/*/run.flags"))
    assert made == ["1", "2", "3"]


def test_files_of_no_run_are_never_overwritten(tmp_path, stylize):
    picture = tmp_path / "image.png"
    picture.write_bytes(b"mine")
    status, _, errors = stylize(f"--workdir={tmp_path}", "--overwrite")
    assert status == 2
    assert "image.png" in errors
    assert picture.read_bytes() == b"mine"
    assert not pathlib.Path(tmp_path, "run.flags").exists()


# --- would this machine give the same result? ---------------------------------------------------------------------


def test_measure_tells_how_much_is_left_of_the_photo_and_how_much_of_the_style_has_come(whole):
    done = narrow.run("experiments.measure", f"--result={whole}", f"--result={whole}", check=True)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second
    assert first["result"] == str(whole)
    assert 0 < first["lpips"] < 1
    assert first["style"] == pytest.approx(np.mean(list(first["style_by_layer"].values())))


def test_measure_needs_the_folder_of_a_run(tmp_path):
    assert "run.flags" in narrow.refused("experiments.measure", f"--result={tmp_path}")


@pytest.fixture
def verify():
    def verify(directory):
        return narrow.run("experiments.verify", f"--workdir={directory}")

    return verify


def test_verify_says_that_nothing_differs_and_how_to_make_it_again(whole, verify):
    done = verify(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"experiments.stylize --flagfile={whole / 'run.flags'} --workdir=OTHER" in done.stdout


def test_verify_names_what_differs(folder, whole, verify):
    changed = shutil.copytree(whole, folder / "changed" / "arms" / "one")
    facts = manifest(changed)
    facts["versions"]["jax"] = "0.1.0"
    facts["cores"] = 999
    facts["git_commit"] = "another"
    facts["weights"]["sha256"] = "1" * 64
    facts["pictures"] = {"gone.png": {"sha256": "2" * 64}, **facts["pictures"]}
    facts["settings"]["XLA_FLAGS"] = "--fast"
    (changed / "manifest.json").write_text(json.dumps(facts))
    done = verify(folder / "changed")
    assert done.returncode == 1, done.stderr
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names[:-1] == [
        *("cores", "settings.XLA_FLAGS", "versions.jax"),
        *("pictures.gone.png.sha256", "weights.sha256"),
    ]


def test_verify_tells_an_environment_that_changed_under_way(folder, whole, verify):
    moved = shutil.copytree(whole, folder / "moved")
    facts = manifest(moved) | {"resumed": [{"step": 2, "differs": {"cores": [64, 2]}}]}
    (moved / "manifest.json").write_text(json.dumps(facts))
    done = verify(moved)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("cores: 64 up to step 2, 2 after it\n")


@pytest.mark.parametrize("text", [None, '{"versions": 3}'])
def test_verify_tells_a_record_that_is_none_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "run.flags").write_text("--steps=1\n")
        (tmp_path / "manifest.json").write_text(text)
    assert str(tmp_path) in narrow.refused("experiments.verify", f"--workdir={tmp_path}")


def test_of_several_photos_those_that_cannot_be_painted_are_told_first_and_the_others_painted(
    folder, stylize
):
    photos, workdir = folder / "good and bad", folder / "some"
    photos.mkdir()
    shutil.copy(folder / "content.png", photos / "good.png")
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n")
    Image.new("RGB", (4000, 16)).save(photos / "flat.png")  # whose side shrinks to nothing
    style = f"--style={folder / 'style.png'}"
    status, output, errors = stylize(f"--content={photos}", style, "--steps=3", f"--workdir={workdir}")
    assert status == 2
    assert errors.splitlines()[-1].startswith(f"stylize: --content={photos}: 2 of 3 photos were not painted")
    assert output.index("bad.png: cannot be painted") < output.index("compiling")
    assert {path.name for path in workdir.iterdir()} == {"good.png"}
    assert manifest(workdir / "good.png")["status"] == "finished"


def test_sixteen_bits_are_refused_before_the_run_and_copied_after_it(folder, stylize):
    workdir, flags = folder / "deep", ("--bits=16", "--steps=2")
    status, _, errors = stylize(*flags, f"--workdir={workdir}", f"--output={folder / 'deep.jpg'}")
    assert (status, "--bits=16" in errors) == (2, True)
    assert not workdir.exists()
    assert stylize(*flags, f"--workdir={workdir}")[0] == 0
    assert stylize(*flags, f"--workdir={workdir}", f"--output={folder / 'deep.png'}")[0] == 0
    assert (folder / "deep.png").read_bytes() == (workdir / "image.png").read_bytes()
    assert stylize(*flags, f"--workdir={workdir}", f"--output={folder / 'deep.tiff'}")[0] == 0
    deep = tifffile.imread(folder / "deep.tiff")
    assert (deep % 257).any()  # its lower bits too
    np.testing.assert_array_equal(deep >> 8, np.asarray(Image.open(workdir / "image.png")))


def test_one_file_can_be_photo_and_style_at_two_sizes(folder, stylize):
    workdir, path = folder / "same", folder / "content.png"
    flags = f"--content={path}", f"--style={path}", *narrow.FEW, "--style_scale=2", "--steps=2"
    assert stylize(*flags, f"--workdir={workdir}")[0] == 0
    (facts,) = manifest(workdir)["pictures"].values()
    assert facts["shapes"] == {"content": [24, 32, 3], "style": [48, 64, 3]}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--steps=1000000000000000"], "--steps"),
        (["--content="], "--content="),
        (["--size=8000", "--strips=64", "--style_scale=20"], "--style_scale"),
        (["--optimizer=scipy-lbfgs:history_size=1000000"], "history_size"),
        (["--size=8192x8192", "--scales=1", "--strips=1"], "--size: 8192x8192 needs "),
    ],
)
def test_what_no_memory_holds_is_refused_at_once(folder, start, flags, named):
    if "8192x8192" in named and memory.available() > 2**35:
        pytest.skip("more than 32 GiB are free, which may hold it")
    begun = time.monotonic()
    process = start(*make_pictures(folder), "--dry_run", *flags, f"--workdir={folder / 'refused'}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert named in errors
    assert len(errors.splitlines()) == 1
    assert time.monotonic() - begun < 30  # much of which is other tests' load


def test_a_dry_run_of_what_cannot_move_is_no_error(folder, stylize):
    status, output, errors = stylize("--dry_run", "--style_weight=0", f"--workdir={folder / 'still'}")
    assert status == 0, errors
    assert "time: about" in output


def test_without_a_home_no_folder_of_its_name_is_made():
    code = (
        "import os; from unittest import mock; from experiments import launch; import jax; from absl import flags\n"
        "flags.FLAGS(['x'])\n"
        "with mock.patch.dict(os.environ, clear=True), mock.patch('os.path.expanduser', lambda path: path):\n"
        "    launch.set_up(launch.runtime())\n"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    done = narrow.run("-c", code)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.parametrize("command", ["stylize", "compare", "measure", "benchmark"])
@pytest.mark.parametrize("platform", ["cuda", "none"])  # of the one, which it knows, JAX says nothing
def test_a_platform_that_is_not_here_is_told_in_one_line(command, platform, tmp_path):
    if importlib.util.find_spec(f"jax_{platform}12_plugin"):
        pytest.skip("it is here")
    code = (
        f"import jax, runpy, sys; jax.config.update('jax_platforms', {platform!r}); sys.argv[0] = {command!r}\n"
        f"runpy.run_module('experiments.{command}', run_name='__main__', alter_sys=True)"
    )
    (tmp_path / "image.png").touch()
    (tmp_path / "run.flags").touch()
    flags = {"measure": [f"--result={tmp_path}"], "compare": ["--launcher=local"]}
    told = narrow.refused("-c", code, *flags.get(command, ()), cwd=tmp_path)
    assert told.startswith(f"{command}: JAX_PLATFORMS={platform}: ")


def test_a_device_that_has_less_memory_than_it_told_is_told_in_one_line():
    code = (
        "import jax, sys\n"
        "from experiments import launch\n"
        "def main():\n"
        "    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nBuffers: …')\n"
        "sys.argv = ['stylize']\n"
        "launch.run(main)"
    )
    told = narrow.refused("-c", code)
    assert (
        "--size: the device has too little memory left (RESOURCE_EXHAUSTED: Out of memory allocating 9"
        in told
    )
    assert "Buffers" not in told


def test_what_an_optimizer_on_the_host_keeps_has_to_fit(folder):
    code = (
        "from experiments import launch, stylize; from jaxstyle.runs import memory\n"
        "memory.available = lambda *_: 3 * 10**7\n"
        "launch.run(stylize.main)"
    )
    optimizer, workdir = "--optimizer=scipy-lbfgs:history_size=1000", folder / "kept"
    flags = *make_pictures(folder), *narrow.FEW, "--size=32", "--steps=1", optimizer, f"--workdir={workdir}"
    done = narrow.run("-c", code, *flags)
    assert (done.returncode, "--size: 32x24 needs" in done.stderr) == (2, True), done.stderr


def test_a_flagfile_that_the_locale_cannot_read_is_named_with_what_helps(tmp_path):
    path = tmp_path / "run.flags"
    path.write_text("--content=phöto.png\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.stylize", f"--flagfile={path}"],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"--flagfile={path}: cannot decode" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr


def test_results_of_a_few_pixels_are_read_back(folder, stylize):
    layers = ("--content_layer=block1_conv1", "--style_layer=block1_conv1")
    flags = (*layers, "--size=12", "--steps=2", "--save_every=1", f"--workdir={folder / 'few'}")
    assert stylize(*flags)[0] == 0
    status, output, errors = stylize(*flags)
    assert (status, "finished before" in output) == (0, True), errors


def test_without_a_workdir_a_run_goes_by_the_names_of_its_pictures_which_are_read_once(folder, tmp_path):
    make_pictures(folder)
    code = (
        "import runpy, sys; from experiments import task; pose, sys.argv[0] = task.pose, 'stylize'\n"
        "task.pose = lambda *given: print('reading') or pose(*given)\n"
        "runpy.run_module('experiments.stylize', run_name='__main__', alter_sys=True)"
    )

    def run(*arguments):
        pictures = (f"--content={folder / 'content.png'}", f"--style={folder / 'style.png'}:2", "--size=32")
        return narrow.run("-c", code, *pictures, *narrow.FEW, *arguments, cwd=tmp_path, check=True).stdout

    first = run("--steps=2")
    assert "picture: runs/content-style/image.png" in first
    assert first.count("reading") == 1
    assert "picture: runs/content-style-2/image.png" in run("--steps=3")
    assert "finished before" in run("--steps=2")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"content-style", "content-style-2"}


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_where_no_run_can_be_written_the_flag_that_helps_is_named(folder):
    pictures = make_pictures(folder)
    told = narrow.refused(
        "experiments.stylize", *pictures, *narrow.FEW, "--size=32", cwd=pathlib.Path("/proc")
    )
    assert told.startswith("stylize: --workdir=runs/content-style: cannot write there: ")


def test_a_current_folder_that_was_deleted_is_told_before_anything_is_painted(folder, tmp_path):
    code = (
        "import os, pathlib, runpy, sys; pathlib.Path.cwd().rmdir(); sys.argv[0] = 'stylize'\n"
        "runpy.run_module('experiments.stylize', run_name='__main__', alter_sys=True)"
    )
    (gone := tmp_path / "gone").mkdir()
    flags = *make_pictures(folder), *narrow.FEW, "--size=32", f"--workdir={tmp_path / 'run'}"
    told = narrow.refused("-c", code, *flags, cwd=gone)
    assert told.startswith("stylize: the current folder was deleted; ")
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_folder_where_no_shell_put_that_in(folder, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    for path in (home, here):
        path.mkdir()
    make_pictures(home)
    (home / "mine.flags").write_text("--content=~/content.png\n--style=~/style.png:2\n")
    paths = ("--flagfile=~/mine.flags", "--workdir=~/run", "--output=~/it.jpg")
    narrow.run(
        *("experiments.stylize", *paths, "--size=32", "--steps=1", *narrow.FEW),
        **{"cwd": here, "check": True, "HOME": str(home)},
    )
    assert (home / "it.jpg").is_file()
    assert not any(here.iterdir())
    record = (home / "run" / "run.flags").read_text()
    assert {f"--content={home}/content.png", f"--style={home}/style.png:2"} < set(record.splitlines())


def test_the_commands_are_listed_with_a_line_each():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [line.split()[2].removeprefix("experiments.") for line in done.stdout.splitlines()[:-1]]
    known = [
        "article",
        "benchmark",
        "compare",
        "measure",
        "plane",
        "studio",
        "study",
        "stylize",
        "sweep",
        "verify",
    ]
    assert names == known


def test_the_first_of_the_commands_can_be_read_alone():
    code = "import runpy, sys; sys.argv[0] = 'x'; runpy.run_module('experiments', run_name='__main__')"
    process = narrow.Process("-c", code, PYTHONUNBUFFERED="1")
    process.stdout.readline()
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == ("", 0)


def test_two_processes_that_race_for_one_workdir_leave_one_whole_run(folder, start, whole):
    """Whichever is second is refused while the first is there, or finds the run finished."""
    workdir = folder / "race" / "run"
    racing = [start(f"--steps={STEPS}", f"--workdir={workdir}") for _ in range(3)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in racing]
    assert 0 in [status for _, status in ends]
    for errors, status in ends:
        assert status in (0, 2), errors
        assert (status == 2) == ("is writing there; wait for it or choose another" in errors)
    assert results(workdir) == results(whole)


def test_a_repeatable_flag_after_a_flagfile_takes_the_place_of_those_in_it(folder, start):
    (folder / "two.flags").write_text(
        "--style=sample:night\n--style=sample:cat\n--style_layer=block1_conv1\n"
    )
    inner = f"--flagfile={folder / 'two.flags'}\n"
    (folder / "one.flags").write_text(f"{inner}--style=sample:facets\n")
    for number, (flags, styles) in enumerate(
        {
            (f"--flagfile={folder / 'two.flags'}", "--style=sample:facets"): ["facets"],
            ("--flagfile", f"{folder / 'two.flags'}", "--style", "sample:facets"): ["facets"],
            (f"--flagfile={folder / 'two.flags'}",): ["night", "cat"],
            (f"--flagfile={folder / 'one.flags'}",): ["facets"],
        }.items()
    ):
        workdir = folder / f"later{number}"
        photo = f"--content={folder / 'content.png'}"
        done = start(photo, *flags, "--content_layer=block2_conv1", "--steps=1", f"--workdir={workdir}")
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        record = (workdir / "run.flags").read_text()
        assert re.findall("^--style=sample:(.*)$", record, re.M) == styles
        assert record.count("--style_layer=") == 1


def test_a_flagfile_that_windows_wrote_is_read(folder, stylize, whole):
    (folder / "windows.flags").write_bytes(f"\ufeff# how long\r\n--steps={STEPS}\r\n".encode())
    flagfile = f"--flagfile={folder / 'windows.flags'}"
    status, output, errors = stylize("--seed=0", flagfile, f"--workdir={whole}")
    assert (status, "finished before" in output) == (0, True), errors


def test_flagfiles_may_name_flagfiles(folder, stylize, whole):
    (folder / "inner.flags").write_text(f"# how long\n--steps={STEPS}\n")
    (folder / "outer.flags").write_text(
        f"--flagfile={folder / 'inner.flags'}\n--workdir={folder / 'nested'}\n"
    )
    status, _, errors = stylize("--seed=0", f"--flagfile={folder / 'outer.flags'}")
    assert status == 0, errors
    assert results(folder / "nested") == results(whole)
    (folder / "lost.flags").write_text("--flagfile=nowhere.flags\n")
    status, _, errors = stylize("--seed=0", f"--flagfile={folder / 'lost.flags'}")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "nowhere.flags" in errors


def test_nothing_but_text_goes_to_a_pipe_however_narrow_the_terminal(stylize, monkeypatch, folder):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    status, output, errors = stylize("--steps=2", f"--workdir={folder / 'narrow'}")
    assert status == 0, errors
    assert "\x1b" not in output + errors
    assert "\r" not in output
    assert (folder / "narrow" / "image.png").exists()
