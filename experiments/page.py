"""What the studio's page may ask for: an application of Starlette, and what it keeps while it is open."""

import json
import pathlib
import shlex
import socket
import tempfile
import threading
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jaxstyle.errors import UserError
from jaxstyle.images import encode, pictures
from jaxstyle.runs import workdir
from jaxstyle.studio import gallery, guard, jobs, uploads

from . import controls, launch, spoken

PAGE = pathlib.Path(uploads.__file__).with_name("page")

#: What a result can be taken home as, by the ending of its name.
DOWNLOADS = (".png", ".tiff", ".jpg")


class Studio:
    """A folder of runs, the queue of those that are made, and the estimate for what is chosen."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.uploads = folder, folder / "uploads"
        # Not those that this command has set for itself: a run records what JAX is told.
        self.queue, self.estimates = jobs.Queue(launch.ENVIRONMENT), jobs.Estimates(launch.ENVIRONMENT)
        self._naming, self._keeping = threading.Lock(), threading.Lock()
        self._lines: dict[str, str] = {}  # how what was begun here is typed

    def close(self) -> None:
        self.estimates.cancel()
        self.queue.close()

    def keep(self, name: str, data: bytes) -> uploads.Upload:
        """Keeps a picture, one after another: of two that are the same and no picture, one would delete the other's.

        Raises:
          UserError: it is none that can be kept.
        """
        with self._keeping:
            return uploads.keep(self.uploads, name, data)

    def chosen(self, data: bytes) -> Mapping[str, str]:
        """What a page has chosen, if it is that.

        Raises:
          UserError: it is not, or its pictures are none that the page was given.
        """
        try:
            chosen = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"what was sent is no JSON: {error}") from error
        if not isinstance(chosen, dict):
            raise UserError("what is chosen must be names with their values")
        for name in ("content", "style"):
            if not uploads.known(str(chosen.get(name)), self.uploads):
                raise UserError(f"{name}: a picture is needed; drop one, or take a sample")
        return chosen

    def paint(self, command: controls.Command) -> str:
        """Puts a command in the queue; the name of its run. The same that is there already is not made twice."""
        with self._naming:
            waiting = self.queue.jobs()
            for job in waiting:
                if job.module == _module(command.name) and job.arguments[:-1] == command.flags:
                    return job.name
            name = self.free_name(command)
            place = f"--workdir={self.folder / name}"
            self.queue.add(jobs.Job(name, _module(command.name), (*command.flags, place)))
            self.estimates.cancel()  # once the queue says why
            self._lines[name] = command.line(str(self.folder / name))
            return name

    def free_name(self, command: controls.Command) -> str:
        """The first name for the run of a command that nothing has."""
        taken = self.queue.states()
        return next(
            name
            for name in workdir.names(command.run)
            if name not in taken and not (self.folder / name).exists()
        )

    def go_on(self, name: str) -> None:
        """Puts a run that has not ended in the queue."""
        directory = gallery.find(self.folder, name)
        command = "compare" if gallery.is_comparison(workdir.flags_of(directory)) else "stylize"
        flags = f"--flagfile={directory / 'run.flags'}", f"--workdir={directory}"
        self.queue.add(jobs.Job(name, _module(command), flags))
        self.estimates.cancel()

    def estimate(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """What the runs for a choice would take: None if it is not known now, and whether that is for a painting."""
        dry = [jobs.Job("", _module("stylize"), (*flags, "--dry_run")) for flags in controls.trials(chosen)]
        # A painting would slow it, and it the painting.
        found = None if self.queue.states() else self.estimates.make(dry)
        return {"estimates": found, "painting": bool(self.queue.states())}

    def listed(self) -> list[dict[str, Any]]:
        """Name, state and newest picture of every run, those on their way before all."""
        states, failures = self.queue.states(), self.queue.failures()
        names = dict.fromkeys([*states, *failures, *gallery.names(self.folder)])
        return [self._item(name, states, failures) for name in names]

    def _item(self, name: str, states: Mapping[str, str], failures: Mapping[str, str]) -> dict[str, Any]:
        directory = self.folder / name
        state = states.get(name) or ("failed" if name in failures else gallery.status(directory))
        known = (directory / "run.flags").is_file()
        shown = gallery.version(gallery.picture(directory)) if known else None
        return {"name": name, "state": state, "message": failures.get(name, ""), "picture": shown}

    def described(self, name: str) -> dict[str, Any]:
        """All that the page shows of one run."""
        states, failures = self.queue.states(), self.queue.failures()
        if name not in states and name not in failures:
            gallery.find(self.folder, name)
        directory = self.folder / name
        if flags := workdir.flags_of(directory):
            arms = gallery.describe(directory)
        else:
            job = next((job for job in self.queue.jobs() if job.name == name), None)
            flags, arms = "".join(f"{flag}\n" for flag in job.arguments[:-1]) if job else "", []
        comparison = gallery.is_comparison(flags)
        again = f"{spoken('compare' if comparison else 'stylize')} " + shlex.join(
            [f"--flagfile={directory / 'run.flags'}", "--workdir=OTHER"]
        )
        return self._item(name, states, failures) | {
            "arms": arms,
            "chosen": controls.read(flags),
            "command": self._lines.get(name, again),
            "report": (directory / "report.html").is_file(),
            "queued": name in states,
        }


def _module(command: str) -> str:
    return f"{__package__}.{command}"


Answer = Callable[[Request, bytes], Any]


def _route(answer: Answer, limit: int = 2**16) -> Callable[[Request], Awaitable[Response]]:
    """What an answer gives as JSON, in a thread of its own; a user's mistake as one line with status 400.

    A body of more than `limit` bytes is not read to its end.
    """

    async def respond(request: Request) -> Response:
        data = bytearray()
        try:
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    text = f"has more than {limit >> 20} MiB" if limit >= 2**20 else "is too long"
                    return JSONResponse({"error": f"what was sent {text}"}, 413)
        except ClientDisconnect:  # the page was closed or loaded anew: nobody waits for an answer
            return Response()
        try:
            found = await run_in_threadpool(answer, request, bytes(data))
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        return found if isinstance(found, Response) else JSONResponse({} if found is None else found)

    return respond


def _about(studio: Studio) -> dict[str, Any]:
    samples = [{"path": name, "label": name.partition(":")[2]} for name in uploads.SAMPLES]
    return controls.page() | {"samples": samples, "folder": str(studio.folder), "bytes": uploads.MAX_BYTES}


def _preview(studio: Studio, name: str) -> Response:
    if not uploads.known(name, studio.uploads):
        raise UserError(f"{name!r}: there is no such picture")
    kept = {"cache-control": "private, max-age=86400"}  # a picture's path changes with its bytes
    return Response(uploads.preview(name), media_type="image/jpeg", headers=kept)


def _picture(directory: pathlib.Path) -> Response:
    """The newest picture of a run or an arm, on its way or done."""
    path = gallery.picture(directory)
    if path is None:
        raise UserError("there is no picture yet")
    return FileResponse(path, headers={"cache-control": "no-store"})


def _download(directory: pathlib.Path, name: str, suffix: str) -> Response:
    """The result of a run or an arm under its name, as a PNG that is the run's own, or written anew."""
    path, suffix = directory / "image.png", f".{suffix}"
    saved = name.replace("/arms/", "-") + suffix
    if suffix == ".webp":
        return FileResponse(_there(directory / "animation.webp"), filename=saved)
    if suffix not in DOWNLOADS:
        raise UserError(f"{suffix!r}: a picture is had as {', '.join(DOWNLOADS)}")
    if suffix == ".png":
        return FileResponse(_there(path), filename=saved)
    record = workdir.flags_of(directory)
    bits = 16 if "--bits=16" in record.splitlines() and suffix in encode.DEEP else 8
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, f"copy{suffix}")
        pictures.write(copy, pictures.read_result(_there(path), bits), record, bits=bits)
        found = copy.read_bytes()
    kind = "image/tiff" if suffix == ".tiff" else "image/jpeg"
    disposition = f"attachment; filename*=UTF-8''{urllib.parse.quote(saved)}"
    return Response(found, media_type=kind, headers={"content-disposition": disposition})


def _report(directory: pathlib.Path) -> Response:
    """The page of a comparison, which has its own scripts, and may ask nothing."""
    policy = (
        "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data: blob:; font-src data:; "
        "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'"
    )
    return FileResponse(_there(directory / "report.html"), headers={"content-security-policy": policy})


def _there(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise UserError(f"there is no {path.name} yet")
    return path


class Server(uvicorn.Server):
    """One that does not wait for an estimate when it ends, which takes longer than it waits for answers."""

    def __init__(self, config: uvicorn.Config, studio: Studio):
        super().__init__(config)
        self._studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._studio.estimates.cancel()
        await super().shutdown(sockets)


def application(studio: Studio, hosts: Collection[str]) -> guard.Application:
    """The page for requests to one of the hosts, NAME:PORT."""

    def find(request: Request) -> pathlib.Path:
        return gallery.find(studio.folder, request.path_params["name"])

    def get(path: str, answer: Answer) -> Route:
        return Route(path, _route(answer), methods=["GET"])

    def post(path: str, answer: Answer, **options: int) -> Route:
        return Route(path, _route(answer, **options), methods=["POST"])

    def upload(request: Request, data: bytes) -> dict[str, Any]:
        return studio.keep(request.query_params.get("name", ""), data)._asdict()

    def command(_: Request, data: bytes) -> dict[str, str]:
        asked = controls.command(studio.chosen(data))
        return {"command": asked.line(str(studio.folder / studio.free_name(asked)))}

    routes = [
        get("/about", lambda *_: _about(studio)),
        post("/uploads", upload, limit=uploads.MAX_BYTES),
        get("/preview", lambda request, _: _preview(studio, request.query_params.get("picture", ""))),
        post("/command", command),
        post("/estimate", lambda _, data: studio.estimate(studio.chosen(data))),
        post("/paint", lambda _, data: {"name": studio.paint(controls.command(studio.chosen(data)))}),
        get("/runs", lambda *_: studio.listed()),
        get("/picture/{name:path}", lambda request, _: _picture(find(request))),
        get(
            "/download/{name:path}.{suffix}",
            lambda request, _: _download(find(request), **request.path_params),
        ),
        get("/report/{name}", lambda request, _: _report(find(request))),
        post("/stop/{name}", lambda request, _: studio.queue.stop(request.path_params["name"])),
        post("/go-on/{name}", lambda request, _: studio.go_on(request.path_params["name"])),
        get("/runs/{name}", lambda request, _: studio.described(request.path_params["name"])),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    return guard.guarded(Starlette(routes=routes), hosts)
