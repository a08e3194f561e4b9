"""The studio: what a page's choices come to, what it may name, one run at a time, and the page in a browser."""

import asyncio
import concurrent.futures
import functools
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

import numpy as np
import pytest
import tifffile
from narrow import Process, command
from PIL import Image

from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.runs import journal, workdir
from jaxstyle.studio import gallery, guard, jobs, uploads

pytest.importorskip("starlette", reason="the extra studio is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra studio is not installed")

from experiments import controls, page, settings, studio  # noqa: E402

CHOSEN = {"content": "sample:cat", "style": "sample:night"}
NASTY = "a <b>&$(x) 'ö'\".png"


def png(width=40, height=30, color=(200, 90, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


# --- what a page's choices come to --------------------------------------------------------------------------------


def test_the_command_of_a_choice_has_what_differs_from_the_defaults():
    plain = controls.command(CHOSEN | controls.values(settings.Settings()) | CHOSEN)
    assert plain == (
        *("stylize", ("--content=sample:cat", "--style=sample:night", "--save_every=2")),
        "cat-night",
    )
    found = controls.command(
        CHOSEN | {"size": "300", "steps": "24", "optimizer": "adam", "preserve_color": "linear"}
    )
    assert set(found.flags) - set(plain.flags) == {
        *("--size=300", "--steps=24", "--optimizer=adam", "--preserve_color=linear", "--save_every=1")
    }
    assert found.line("a b") == f"python -m experiments.stylize {' '.join(found.flags)} '--workdir=a b'"


def test_a_field_that_was_emptied_is_at_its_default():
    emptied = dict.fromkeys(controls.CHOSEN, "") | {"size": " "} | CHOSEN
    assert controls.command(emptied) == controls.command(CHOSEN)
    assert controls.trials(emptied) == controls.trials(CHOSEN)


def test_two_optimizers_are_a_comparison_and_two_dry_runs():
    found = controls.command(CHOSEN | {"against": "adam:learning_rate=3"})
    assert (found.name, found.run) == ("compare", "compare-cat-night")
    assert found.flags[-2:] == ("--optimizer=lbfgs:scaling=spectral", "--optimizer=adam:learning_rate=3")
    one, two = controls.trials(CHOSEN | {"against": "adam:learning_rate=3"})
    assert {"--scales=1", "--parametrization=pixels", "--steps=80"} <= set(one) & set(two)
    assert set(two) - set(one) == {"--optimizer=adam:learning_rate=3"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(
            ("size", "0"),
            ("size", "1e9"),
            ("steps", "-1"),
            ("seed", "x"),
            ("style_weight", "-3"),
            ("bits", "12"),
        ),
        *(("style_loss", "none"), ("optimizer", "adamm"), ("against", "adam:rate=1"), ("workdir", "/tmp")),
        *(("style_scale", "nan"), ("steps", "1\n--weights=x")),
    ],
)
def test_a_value_that_its_flag_does_not_take_is_refused_by_name(flag, value):
    with pytest.raises(UserError) as refused:
        controls.command(CHOSEN | {flag: value})
    assert "\n" not in str(refused.value)


def test_what_a_run_was_made_with_is_read_back_as_a_choice():
    chosen = (
        controls.values(settings.Settings())
        | CHOSEN
        | {"size": "300", "style_loss": "mrf", "optimizer": "adam"}
    )
    for each in (chosen, chosen | {"against": "gd:learning_rate=3"}):
        lines = "".join(f"{flag}\n" for flag in controls.command(each).flags)
        assert controls.read(lines) == each
    assert controls.read("--pair=A\n--seeds=1\n") == {}


def test_every_picture_of_a_choice_is_there_and_every_help_is_the_flag_s():
    about = controls.page()
    for control in about["controls"]:
        assert control["help"]
        for choice in control["choices"]:
            assert choice["picture"] is None or (page.PAGE / f"{choice['picture']}.webp").is_file()
            controls.command(CHOSEN | {control["flag"]: choice["value"]})
    assert about["defaults"]["size"] == settings.Settings().size
    for choice in controls.OPTIMIZERS:
        controls.command(CHOSEN | {"optimizer": choice.value})


# --- pictures that it is given ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *(("me.jpg", "me.jpg"), ("../../etc/pass wd.png", "pass wd.png"), ("C:\\x\\ü.HEIC", "ü.HEIC")),
        *(
            (".hidden.png", "hidden.png"),
            (NASTY, "a _b____x_ _ö__.png"),
            ("a" * 300 + ".jpg", "a" * 76 + ".jpg"),
        ),
        ("line\nbreak.png", "line_break.png"),
    ],
)
def test_a_name_is_made_safe_and_stays_readable(name, kept):
    assert uploads.safe_name(name) == kept


@pytest.mark.parametrize("name", ["", "picture", "..", ".jpg", "a.", "a.jpg/"])
def test_a_name_that_is_no_picture_s_is_refused(name):
    with pytest.raises(UserError):
        uploads.safe_name(name)


def test_the_same_bytes_are_kept_once_and_are_known_there(tmp_path):
    first = uploads.keep(tmp_path, "me.png", png())
    assert uploads.keep(tmp_path, "me.png", png()) == first
    assert (first.width, first.height, first.name) == (40, 30, "me.png")
    assert pathlib.Path(first.path).read_bytes() == png()
    assert uploads.known(first.path, tmp_path)
    assert uploads.known("sample:cat", tmp_path)
    preview = Image.open(io.BytesIO(uploads.preview(first.path)))
    assert (preview.format, preview.size) == ("JPEG", (40, 30))


def test_what_was_kept_stays_where_it_cannot_be_read_once_more(tmp_path, monkeypatch):
    kept = uploads.keep(tmp_path, "me.png", png())

    def read(path, **_):
        raise UserError(f"{str(path)!r}: needs more memory than there is; make it smaller")

    monkeypatch.setattr(uploads.pictures, "read", read)
    with pytest.raises(UserError, match=r"'me\.png': needs more memory"):
        uploads.keep(tmp_path, "me.png", png())
    assert pathlib.Path(kept.path).read_bytes() == png()


def test_uploads_that_have_no_place_are_told_of_it(tmp_path):
    (tmp_path / "uploads").write_text("a file")
    with pytest.raises(UserError, match="uploads': cannot be written: Not a directory"):
        uploads.keep(tmp_path / "uploads", "me.png", png())


def test_a_page_may_name_samples_and_uploads_alone(tmp_path):
    folder = tmp_path / "uploads"
    kept = pathlib.Path(uploads.keep(folder, "me.png", png()).path)
    (tmp_path / "outside.png").write_bytes(png())
    for name in (
        *(
            "sample:dog",
            "",
            "/etc/hostname",
            str(tmp_path / "outside.png"),
            str(folder / ".." / "outside.png"),
        ),
        *(str(kept.parent / ".." / ".." / "outside.png"), str(kept.parent), str(kept) + "x"),
    ):
        assert not uploads.known(name, folder), name


@pytest.mark.parametrize("data", [b"", b"no picture", png(8, 8), png()[:60]])
def test_what_is_no_picture_or_too_small_is_refused_by_its_name_and_not_kept(tmp_path, data):
    with pytest.raises(UserError, match=r"'me\.png'"):
        uploads.keep(tmp_path, "me.png", data)
    assert not list(tmp_path.rglob("*"))


def test_too_many_bytes_or_pixels_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="million"):
        uploads.keep(tmp_path, "bomb.png", png(9000, 9000))
    monkeypatch.setattr(uploads, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="MiB"):
        uploads.keep(tmp_path, "me.png", png())
    assert not list(tmp_path.rglob("*"))


# --- one run at a time --------------------------------------------------------------------------------------------

SCRIPT = """
import os, pathlib, signal, sys, time
name, kind = sys.argv[1:]
log = os.open("log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)  # a file object cannot be written to while it is
def stop(*_):
    os.write(log, f"{name} stopped\\n".encode())
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
os.write(log, f"{name} begins\\n".encode())
if kind == "fails":
    print("job: --size=0: must be more", file=sys.stderr)
    sys.exit(2)
while kind == "waits" and not pathlib.Path(name).exists():
    time.sleep(0.01)
os.write(log, f"{name} ends\\n".encode())
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    made = jobs.Queue(os.environ)
    yield made
    made.close()


def logged():
    return pathlib.Path("log").read_text().splitlines() if pathlib.Path("log").exists() else []


def test_runs_go_one_after_another_in_their_order(queue):
    for name in "abc":
        queue.add(jobs.Job(name, "job", (name, "waits")))
    queue.add(jobs.Job("b", "job", ("b", "waits")))  # is there already
    wait_for(lambda: logged() == ["a begins"])
    assert queue.states() == {"a": "running", "b": "waiting", "c": "waiting"}
    queue.stop("b")
    for name in "ca":
        pathlib.Path(name).touch()
    wait_for(lambda: not queue.states())
    assert logged() == ["a begins", "a ends", "c begins", "c ends"]
    assert queue.failures() == {}


def test_a_run_that_is_stopped_hears_of_it_once_and_the_next_begins(queue):
    queue.add(jobs.Job("a", "job", ("a", "waits")))
    queue.add(jobs.Job("b", "job", ("b", "runs")))
    wait_for(lambda: logged() == ["a begins"])
    queue.stop("a")
    queue.stop("a")
    wait_for(lambda: not queue.states())
    assert logged() == ["a begins", "a stopped", "b begins", "b ends"]
    assert queue.failures() == {}


def test_a_run_that_fails_leaves_its_line_until_it_is_tried_again(queue):
    queue.add(jobs.Job("a", "job", ("a", "fails")))
    wait_for(lambda: queue.failures() == {"a": "job: --size=0: must be more"})
    queue.add(jobs.Job("a", "job", ("a", "runs")))
    wait_for(lambda: not queue.states())
    assert queue.failures() == {}


def test_when_the_studio_ends_the_run_is_asked_to_stop_and_none_begins(queue):
    for name in "ab":
        queue.add(jobs.Job(name, "job", (name, "waits")))
    wait_for(lambda: logged() == ["a begins"])
    queue.close()
    assert logged() == ["a begins", "a stopped"]


def test_no_more_wait_than_may(queue, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_WAITING", 1)
    queue.add(jobs.Job("a", "job", ("a", "waits")))
    wait_for(lambda: logged() == ["a begins"])
    queue.add(jobs.Job("b", "job", ("b", "waits")))
    with pytest.raises(UserError, match="wait already"):
        queue.add(jobs.Job("c", "job", ("c", "waits")))


def test_a_dry_run_that_dies_without_a_word_is_told_to_have_said_nothing():
    silent = jobs.Job("", "timeit", ("-n1", "import os; os._exit(1)"))
    with pytest.raises(UserError, match="it said nothing"):
        jobs.Estimates(os.environ).make([silent])


def test_a_run_that_cannot_be_started_has_failed_and_the_next_begins(queue, monkeypatch):
    start = subprocess.Popen

    def without_room(command, **options):
        if command[3] == "a":
            raise OSError(12, "Cannot allocate memory")
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", without_room)
    for name in "ab":
        queue.add(jobs.Job(name, "job", (name, "runs")))
    wait_for(lambda: not queue.states())
    assert logged() == ["b begins", "b ends"]
    assert queue.failures() == {"a": "its process cannot be started: Cannot allocate memory"}


# --- what is shown of runs ----------------------------------------------------------------------------------------


def make_run(directory, flags="--content=sample:cat\n--size=64\n--steps=900\n", status="finished", rows=901):
    directory.mkdir(parents=True)
    (directory / "run.flags").write_text(flags)
    k = np.arange(rows)
    journal.write_metrics(
        directory / "metrics.csv", np.stack([k, 2 * k + 1, 0.5 * k, 1000.0 - k, k, k, k], 1)
    )
    journal.write_manifest(directory, {"status": status})
    (directory / "image.png").write_bytes(png())


def test_a_curve_is_thinned_out_to_its_ends(tmp_path):
    make_run(tmp_path / "a")
    found = gallery.curve(tmp_path / "a")
    assert len(found["step"]) == gallery.POINTS
    assert (found["step"][0], found["step"][-1], found["total"][-1], found["evaluations"][-1]) == (
        0,
        900,
        100,
        1801,
    )
    assert gallery.curve(tmp_path)["total"] == []


def test_runs_are_listed_the_newest_first_and_what_is_no_picture_is_not(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "sweep", flags="--size=64\n--learning_rates=1\n")
    make_run(tmp_path / "plane", flags="--arm=gram:3\n--size=64\n")
    time.sleep(0.02)
    make_run(tmp_path / "b")
    (tmp_path / "uploads").mkdir()
    assert gallery.names(tmp_path) == ["b", "a"]


def test_a_comparison_is_as_far_as_its_arms(tmp_path):
    make_run(tmp_path / "c", flags="--optimizer=lbfgs\n--optimizer=adam\n--seeds=1\n--size=64\n")
    make_run(tmp_path / "c" / "arms" / "adam")
    make_run(tmp_path / "c" / "arms" / "lbfgs", status="interrupted")
    assert gallery.status(tmp_path / "c") == "interrupted"
    assert [each["path"] for each in gallery.describe(tmp_path / "c")] == ["c/arms/lbfgs", "c/arms/adam"]
    assert gallery.find(tmp_path, "c/arms/adam") == tmp_path / "c" / "arms" / "adam"


def test_what_says_that_it_runs_and_does_not_can_go_on(tmp_path):
    make_run(tmp_path / "a", status="running")
    (tmp_path / "a" / workdir.LOCK).write_text("process 1 on a machine that was switched off")
    assert gallery.status(tmp_path / "a") == "unfinished"
    with workdir.claimed(tmp_path / "a"):
        assert gallery.status(tmp_path / "a") == "running"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/..", "c/arms", "c/arms/..", "c/arms/adam/x", "/etc", "c/./a", "c//a"]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    make_run(tmp_path / "runs" / "c" / "arms" / "adam")
    make_run(tmp_path / "outside")
    (tmp_path / "run.flags").write_text("")
    with pytest.raises(UserError):
        gallery.find(tmp_path / "runs", name)


# --- the page over HTTP -------------------------------------------------------------------------------------------


def status_of(headers):
    """What a guarded application answers."""
    sent = []

    async def send(message):
        sent.append(message)

    async def hello(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(guard.guarded(hello, ["127.0.0.1:8", "localhost:8"])(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_it_answers_this_machine_alone():
    for headers in ({"host": "127.0.0.1:8"}, {"host": "localhost:8", "origin": "http://127.0.0.1:8"}):
        status, sent = status_of(headers)
        assert status == 200
        assert sent[b"content-security-policy"].startswith(b"default-src 'none'")
    for headers in (
        *({"host": "evil.example:8"}, {"host": "127.0.0.1:9"}, {}),
        *(
            {"host": "127.0.0.1:8", "origin": "http://evil.example"},
            {"host": "127.0.0.1:8", "origin": "null"},
        ),
    ):
        assert status_of(headers)[0] == 403


class Client:
    """Asks a studio that runs in this process."""

    def __init__(self, port, studio):
        self.port, self.studio = port, studio
        self.address = f"http://127.0.0.1:{port}/"

    def ask(self, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("GET" if data is None else "POST", "/" + path, data, headers)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        return answer.status, json.loads(found) if answer.headers[
            "content-type"
        ] == "application/json" else found

    def get(self, path, body=None):
        status, found = self.ask(path, body)
        assert status == 200, found
        return found


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A studio whose runs are of a narrow network."""

    def start(job, environment):
        return Process(job.module, *job.arguments, stderr=subprocess.STDOUT, start_new_session=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_start", start)
        studio = page.Studio(tmp_path_factory.mktemp("studio") / "runs")
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            page.application(studio, [f"127.0.0.1:{port}"]),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Client(port, studio)
        server.should_exit = True
        thread.join()
        studio.close()
        listener.close()


def painted(client, chosen):
    """The name of a run that has ended, and what the page is told of it."""
    name = client.get("paint", CHOSEN | {"size": "48", "steps": "3"} | chosen)["name"]
    return name, wait_for(lambda: ended(client, name))


def ended(client, name):
    found = client.get(f"runs/{urllib.parse.quote(name)}")
    return found if found["state"] not in ("waiting", "running", "stopping") else None


def test_from_an_upload_to_a_download(client):
    photo = client.get(f"uploads?name={urllib.parse.quote(NASTY)}", png(64, 48))
    assert Image.open(
        io.BytesIO(client.get(f"preview?picture={urllib.parse.quote(photo['path'])}"))
    ).size == (64, 48)
    small = {"size": "48", "steps": "3", "bits": "16", "optimizer": "adam"}
    chosen = CHOSEN | {"content": photo["path"]} | small
    told = client.get("command", chosen)["command"]
    assert not client.studio.folder.joinpath("a _b____x_ _ö__-night").exists()
    name, found = painted(client, chosen)
    assert (found["state"], found["message"], found["command"]) == ("finished", "", told)
    assert found["chosen"] == controls.values(settings.Settings()) | chosen
    assert len(found["arms"][0]["curve"]["total"]) == 4
    assert (client.studio.folder / name / "animation.webp").exists()
    path = f"download/{urllib.parse.quote(name)}"
    own = pictures.read_result(client.studio.folder / name / "image.png", 16)
    assert client.get(f"{path}.png") == (client.studio.folder / name / "image.png").read_bytes()
    deep = tifffile.imread(io.BytesIO(client.get(f"{path}.tiff")))
    np.testing.assert_array_equal(deep, np.round(own * 257))
    assert Image.open(io.BytesIO(client.get(f"{path}.jpg"))).size == (48, 36)
    assert Image.open(io.BytesIO(client.get(f"{path}.webp"))).n_frames > 1
    assert client.ask(f"{path}.gif")[0] == 400
    assert client.studio.free_name(controls.command(chosen)) == f"{name}-2"


def test_a_run_waits_is_stopped_and_goes_on_to_its_end(client):
    long = {"size": "64", "steps": "400", "optimizer": "adam"}
    name = client.get("paint", CHOSEN | long)["name"]
    assert client.get("paint", CHOSEN | long)["name"] == name  # clicked twice
    after = client.get("paint", CHOSEN | long | {"seed": "1"})["name"]
    assert client.get(f"runs/{after}")["state"] == "waiting"
    client.get(f"stop/{after}", {})
    with pytest.raises(AssertionError, match="no such run"):
        client.get(f"runs/{after}")
    none = {"estimates": None, "painting": True}
    assert client.get("estimate", CHOSEN) == none  # it would disturb, and be disturbed
    wait_for(lambda: any(arm["picture"] for arm in client.get(f"runs/{name}")["arms"]))
    client.get(f"stop/{name}", {})
    found = wait_for(lambda: ended(client, name))
    assert found["state"] == "interrupted"
    assert 0 < found["arms"][0]["curve"]["step"][-1] < 400
    client.get(f"go-on/{name}", {})
    assert wait_for(lambda: ended(client, name))["state"] == "finished"
    assert client.get("runs")[0]["name"] == name


def test_two_optimizers_are_compared_side_by_side(client):
    name, found = painted(client, {"optimizer": "adam", "against": "lbfgs"})
    assert name == "compare-cat-night"
    assert (found["chosen"]["optimizer"], found["chosen"]["against"]) == ("adam", "lbfgs")
    assert [arm["label"] for arm in found["arms"]] == ["adam", "lbfgs"]
    for arm in found["arms"]:
        assert Image.open(io.BytesIO(client.get(f"picture/{arm['path']}"))).width == 48
        assert client.get(f"download/{arm['path']}.png")
    status, report = client.ask(f"report/{name}")
    assert status == 200
    assert b"<html" in report


def test_what_a_run_would_take_is_told_before(client):
    (found,) = client.get("estimate", CHOSEN | {"size": "48", "steps": "3"})["estimates"]
    assert found["size"] == "48x32"
    assert found["time"].startswith("about")
    assert "GiB" in found["memory"]


def test_an_estimate_that_does_not_come_to_its_end_says_whether_a_painting_is_why(client):
    small = CHOSEN | {"size": "48", "steps": "3"}
    with concurrent.futures.ThreadPoolExecutor(1) as other:

        def begun():
            before = client.studio.estimates._process
            answer = other.submit(client.get, "estimate", CHOSEN)
            wait_for(lambda: client.studio.estimates._process not in (None, before))
            return answer

        overtaken = begun()
        assert client.get("estimate", small)["estimates"]  # of another page
        assert overtaken.result() == {"estimates": None, "painting": False}
        disturbed = begun()
        painted(client, {"seed": "7"})
        assert disturbed.result() == {"estimates": None, "painting": True}


def test_a_mistake_is_one_line_and_nothing_is_written(client):
    (client.studio.folder / "uploads").mkdir(parents=True, exist_ok=True)  # which any upload makes
    before = sorted(client.studio.folder.rglob("*"))
    for path, body in (
        *(("paint", {"content": "/etc/hostname", "style": "sample:night"}), ("paint", {}), ("paint", b"{")),
        ("paint", b"[" * 50_000),
        *(
            ("paint", CHOSEN | {"size": "0"}),
            ("paint", CHOSEN | {"workdir": "x"}),
            ("command", CHOSEN | {"size": 3}),
        ),
        *(("uploads?name=me.png", b"none"), ("uploads", png()), ("go-on/none", {}), ("go-on/..", {})),
        *(
            ("runs/..%2f..", None),
            ("download/none.png", None),
            ("picture/uploads", None),
            ("report/none", None),
        ),
        ("preview?picture=/etc/hostname", None),
    ):
        status, found = client.ask(path, body)
        assert status in (400, 404), path
        if status == 400:
            assert set(found) == {"error"}
            assert "\n" not in found["error"]
    assert client.ask("paint", b" " * 70000)[0] == 413
    assert client.ask("runs", Origin="http://evil.example")[0] == 403
    assert sorted(client.studio.folder.rglob("*")) == before


def test_what_is_no_picture_is_told_so_to_all_who_send_it_at_once(client, monkeypatch):
    def read(path, **_):
        time.sleep(0.05)  # in which the others come
        raise UserError(f"{str(path)!r}: is no picture")

    monkeypatch.setattr(pictures, "read", read)
    with concurrent.futures.ThreadPoolExecutor(8) as pages:
        answers = list(pages.map(lambda _: client.ask("uploads?name=me.png", b"none"), range(8)))
    assert answers == [(400, {"error": "'me.png': is no picture"})] * 8


def test_who_goes_away_while_sending_leaves_no_trace(client, caplog):
    before = sorted(client.studio.folder.rglob("*"))
    with socket.create_connection(("127.0.0.1", client.port)) as leaving:
        host = f"Host: 127.0.0.1:{client.port}"
        leaving.sendall(
            f"POST /uploads?name=me.png HTTP/1.1\r\n{host}\r\nContent-Length: 99\r\n\r\nhalf".encode()
        )
        client.get("runs")  # after which what was sent before has been read
    for _ in range(3):
        client.get("runs")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert sorted(client.studio.folder.rglob("*")) == before


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_its_address_and_ends_with_what_runs(tmp_path):
    flags = "--port=0", f"--workdir={tmp_path}"
    with subprocess.Popen(**command("experiments.studio", *flags)) as running:
        address = running.stdout.readline().split()[1]
        port = urllib.parse.urlsplit(address).port
        client = Client(port, None)
        assert b"jaxstyle" in client.get("")
        client.get("paint", CHOSEN | {"size": "64", "steps": "100000", "optimizer": "gd:learning_rate=1"})
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(60) == 130
        finally:
            running.kill()  # or leaving `with` would wait for it
    assert not (tmp_path / ".jaxstyle.lock").exists()


def test_an_estimate_on_its_way_ends_with_the_studio(tmp_path):
    with subprocess.Popen(**command("experiments.studio", "--port=0", f"--workdir={tmp_path}")) as running:
        port = urllib.parse.urlsplit(running.stdout.readline().split()[1]).port
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            answer = other.submit(Client(port, None).get, "estimate", CHOSEN)
            time.sleep(1)  # a dry run takes longer, even to import what it needs
            running.send_signal(signal.SIGINT)
            try:
                assert running.wait(60) == 130
            finally:
                running.kill()
            assert answer.result() == {"estimates": None, "painting": False}
        assert running.stderr.read() == "interrupted by SIGINT; the same command goes on from here\n"


def test_a_run_is_given_the_variables_that_the_studio_was_given(tmp_path):
    """What is set for JAX here would be recorded, as by no run of the same command, and compile anew."""
    (tmp_path / "told.py").write_text("import os; print('told:', os.environ['XLA_FLAGS'])")
    code = (
        "import pathlib; from experiments import launch, page; from jaxstyle.studio import jobs\n"
        "launch.set_up(launch.Runtime(deterministic=True, compilation_cache='', devices=None))\n"
        "(found,) = page.Studio(pathlib.Path('runs')).estimates.make([jobs.Job('', 'told', ())])\n"
        "print(found['told'])"
    )
    with Process("-c", code, cwd=tmp_path) as running:
        output, errors = running.communicate()
    assert output == f"{os.environ['XLA_FLAGS']}\n", errors


def test_a_port_that_is_taken_is_named():
    with studio.bind(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: "):
            studio.bind(port)


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(client, tmp_path_factory):
    """A headless Chromium as wide as a desk, which saves what it downloads, and its folder."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no chromium with its driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    folder, options = tmp_path_factory.mktemp("downloads"), webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    allow = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    yield driver, folder
    driver.quit()


#: Drops a picture that is painted here, as a file of that name, on the easel of that id.
DROP = """
const [id, name, done] = arguments;
const canvas = Object.assign(document.createElement("canvas"), { width: 80, height: 60 });
const context = canvas.getContext("2d");
context.fillStyle = "orange";
context.fillRect(20, 10, 40, 30);
canvas.toBlob((blob) => {
  const given = new DataTransfer();
  given.items.add(new File([blob], name, { type: "image/png" }));
  const drop = document.querySelector(`#${id} .drop`);
  drop.dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
  done();
}, "image/png");
"""
TYPE = """
const [title, value] = arguments;
const label = [...document.querySelectorAll("#numbers label")].find((each) => each.textContent.startsWith(title));
const field = label.querySelector("input[type=number]");
field.value = value;
field.dispatchEvent(new Event("input"));
"""


def shown(driver, selector):
    """The text that a page has there."""
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def test_as_many_arms_as_have_a_colour_are_told_apart_by_it():
    page = pathlib.Path(gallery.__file__).parent / "page"
    count = int(re.search(r"arm\$\{index % (\d+)\}", (page / "studio.js").read_text())[1])
    colours = dict(
        re.findall(r"^\.arm(\d) \{ color: (.+); \}", (page / "studio.css").read_text(), re.MULTILINE)
    )
    assert list(colours) == [str(index) for index in range(count)]
    assert len(set(colours.values())) == count == 6


def test_in_a_browser_from_drop_to_download(client, browser):
    driver, folder = browser
    driver.get(client.address)
    text = functools.partial(shown, driver)

    def click(selector):
        driver.execute_script("document.querySelector(arguments[0]).click()", selector)

    wait_for(lambda: text("#content .name"))
    driver.execute_async_script(DROP, "content", NASTY)
    wait_for(lambda: "80\N{MULTIPLICATION SIGN}60" in text("#content .name"))
    click('#style [title="sample: facets"]')
    for title, value in (("Longer side", "48"), ("Steps", "3")):
        driver.execute_script(TYPE, title, value)
    click("[name=preserve_color][value=luminance]")
    wait_for(lambda: "--size=48 --steps=3" in text("#command"))
    wait_for(lambda: "GiB" in text("#estimate"))
    click("#copy")  # which a browser without a screen may not
    wait_for(lambda: text("#copy") == "Selected", 10)
    assert driver.execute_script("return getSelection().toString()") == text("#command")
    typed = text("#command")
    click("#paint")
    wait_for(lambda: "-facets done" in text("#state"))
    assert text("#made code") == typed
    width = "return document.querySelector('#canvas img').naturalWidth"
    wait_for(lambda: driver.execute_script(width) == 48, 10)  # it loads after the words
    assert driver.execute_script("return document.querySelectorAll('#curve polyline').length") == 1
    click('#actions a[href$=".tiff"]')
    saved = wait_for(lambda: list(folder.glob("*.tiff")))[0]
    with Image.open(saved) as image:
        assert image.size == (48, 36)
    # Names are text, nothing failed, and nothing was asked of anyone else.
    assert not driver.execute_script("return document.querySelectorAll('main b b, main script').length")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    asked = requests(driver)
    assert any("/paint" in url for url in asked)
    assert {url for url in asked if not url.startswith((client.address, "data:", "blob:"))} == set()


def test_in_a_browser_what_was_killed_goes_on_and_what_another_runs_is_left_alone(client, browser):
    driver, _ = browser
    folder = client.studio.folder / "killed"
    flags = "".join(f"--optimizer={name}\n" for name in ("gd", "adam", "lbfgs"))
    make_run(folder, flags + "--seeds=1\n--content=sample:cat\n--size=64\n--steps=900\n", "running")
    for name in ("gd", "adam", "lbfgs"):
        make_run(folder / "arms" / name, status="running", rows=801)
    try:
        with workdir.claimed(folder):
            driver.get(f"{client.address}#killed")
            wait_for(lambda: "step 2400 of 2700" in shown(driver, "#state"))
            assert "Stop" not in shown(driver, "#actions")
            assert "Go on" not in shown(driver, "#actions")
        wait_for(lambda: "Go on" in shown(driver, "#actions"))
        assert "not finished" in shown(driver, "#state")
    finally:
        shutil.rmtree(folder)
    wait_for(lambda: "killed" not in shown(driver, "#state"))
    assert "no such run" not in shown(driver, "#message")


def requests(driver):
    """The addresses that a browser has asked."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["documentURL"].startswith("chrome")
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(client, browser, width):
    driver, _ = browser
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(client.address)
    wait_for(lambda: driver.execute_script("return document.querySelectorAll('.tiles img').length > 10"))
    page_width, seen = driver.execute_script(
        "const { scrollWidth, clientWidth } = document.documentElement; return [scrollWidth, clientWidth]"
    )
    assert width - 20 < page_width == seen <= width
