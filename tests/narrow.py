"""Commands on a network of random weights and few channels, so that tests need not wait for VGG16.

    done = narrow.run("experiments.compare", "--steps=3", ...)

Each is a process with its own pid, pipes, folder and environment, forked from one that has imported what all commands
import; `python tests/narrow.py experiments.compare --steps=3 ...` starts one from nothing. In place of a command may
stand "-c" and code.
"""

import atexit
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any, NoReturn, TypeVar

import numpy as np

from jaxstyle.network import vgg, weights
from jaxstyle.quality import photo

Value = TypeVar("Value")

ROOT = pathlib.Path(__file__).parent.parent

#: Flags of few layers, which compile in a moment, for what depends on none.
FEW = ("--content_layer=block2_conv1", "--style_layer=block1_conv1", "--style_layer=block2_conv1")


def command(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Arguments for `subprocess` that run a command so, for what only a process from nothing can show."""
    return {
        "args": [sys.executable, __file__, module, *arguments],
        "cwd": ROOT,
        "env": os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


class Process:
    """A command that has been started: what tests need of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        cwd: pathlib.Path = ROOT,
        stdout: IO[str] | None = None,
        stderr: IO[str] | int | None = None,
        start_new_session: bool = False,
        cores: Collection[int] = (),
        **environment: str,
    ):
        """`stdout` is by default a pipe; `cores` are those that it may use, by default all."""
        order, orders = os.pipe()
        self._ends, ended = os.pipe()
        output, out = (None, os.dup(stdout.fileno())) if stdout else os.pipe()
        self.stdout = stdout or open(output)  # noqa: SIM115
        self.stderr = stderr or tempfile.TemporaryFile("w+")  # noqa: SIM115
        if stderr == subprocess.STDOUT:
            self.stderr = None
        socket.send_fds(_server(), [b"!"], [order, ended, out, self.stderr.fileno() if self.stderr else out])
        for mine in (order, ended, out):
            os.close(mine)
        with open(orders, "w") as stream:
            variables = dict(os.environ) | environment
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            how = start_new_session, [*cores], [*blocked]
            json.dump(([module, *arguments], str(cwd), variables, *how), stream)
        self.pid = int(os.read(self._ends, 16))
        self.returncode: int | None = None
        self._looking = threading.Lock()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.communicate()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """The exit status, of a signal its negative."""
        until = time.monotonic() + timeout
        while True:
            with self._looking:  # which another thread may do too
                left = until - time.monotonic()
                if self.returncode is None and select.select([self._ends], [], [], min(max(left, 0), 0.1))[0]:
                    self.returncode = os.waitstatus_to_exitcode(int(os.read(self._ends, 16)))
                    os.close(self._ends)
                if self.returncode is not None:
                    return self.returncode
            if left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)

    def until(self, condition: Callable[[], Value], timeout: float = 120) -> Value:
        """What a condition comes to once it holds, before which this process is not to end."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert self.poll() is None, self.communicate()
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.01)
        return found

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Standard output and error, once it has ended; it is killed if that takes longer."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        output = ""
        if self.stdout and not self.stdout.closed:
            with self.stdout:
                output = self.stdout.read()
        self.wait(timeout)
        timer.cancel()
        if self.stderr is None or self.stderr.closed:
            return output, ""
        with self.stderr:
            self.stderr.seek(0)
            return output, self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(module: str, *arguments: str, check: bool = False, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, which is to be a good one with `check`; `how` is as of `Process`."""
    process = Process(module, *arguments, **how)
    output, errors = process.communicate()
    assert not (check and process.returncode), errors
    return subprocess.CompletedProcess([module, *arguments], process.returncode, output, errors)


def refused(module: str, *arguments: str, **how: Any) -> str:
    """The line that is all that a command says which ends with status 2."""
    done = run(module, *arguments, **how)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


def holding(directory: pathlib.Path, seconds: float) -> Process:
    """A process that holds a run's directory for so long, from before it is returned."""
    code = (
        "import pathlib, time; from jaxstyle.runs import workdir\n"
        f"with workdir.claimed(pathlib.Path({str(directory)!r})): print(flush=True); time.sleep({seconds})"
    )
    process = Process("-c", code)
    process.stdout.readline()
    return process


def popen(arguments: Sequence[str], env: Mapping[str, str], **how: Any) -> Process:
    """A fork in place of a Python that submitit would start, to which it is what `subprocess.Popen` returns."""
    module, folder = arguments[-2:]
    files = {name: how.get(name) or getattr(sys, name) for name in ("stdout", "stderr")}
    return Process(module, folder, cwd=pathlib.Path.cwd(), cores=os.sched_getaffinity(0), **files, **env)


@functools.cache
def _server() -> socket.socket:
    """The way to the process that forks, which ends with this one."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore:os.fork:RuntimeWarning", __file__, f"{theirs.fileno()}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _fork_server() -> socket.socket | None:
    """Has jobs that this process starts be forks too, in its session; its orders are returned in what forks them."""
    from submitit.local import local

    global _server
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        return theirs
    theirs.close()
    _server = lambda: ours  # noqa: E731
    local.subprocess = types.SimpleNamespace(Popen=popen)
    return None


def _fork_rows() -> None:
    """Has the processes of a benchmark be forks of one that has imported what they all import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.launch"])
    multiprocessing.get_context = lambda method: context


def _import_all() -> None:
    """Imports what commands have in common, and does once what takes longer the first time."""
    import jaxopt  # noqa: F401
    from jaxlib.mlir.dialects import mhlo  # noqa: F401 - with what is lowered first
    from PIL import Image

    from experiments import arm, cluster, task, yardstick  # noqa: F401
    from jaxstyle.lab import article, figures, records, report, study_report  # noqa: F401

    Image.init()
    drawn = records.Arm("", "adam", "", 0, "finished", {"pictures": {}}, np.ones((2, 7)), None)
    figures.png(figures.terms(drawn.rows))
    report.page("", [drawn], [], "")
    gc.collect()
    gc.freeze()  # or each command would look through all that, and copy it, when it ends
    gc.set_threshold(50_000, 20, 50)  # as in the process of the tests


def _await_order(orders: socket.socket) -> list[str]:
    """Forks at each order; the arguments are returned in the fork, which is to run them."""
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for what is forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a command waits for itself
    while True:
        said, ends, *_ = socket.recv_fds(orders, 1, 4)
        if not said:
            os._exit(0)
        if not os.fork():
            break
        for end in ends:
            os.close(end)
    orders.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order, ended, out, err = ends
    with open(order) as stream:
        arguments, folder, environment, of_its_own, cores, blocked = json.load(stream)
    if child := os.fork():
        os.close(out)
        os.close(err)
        os.write(ended, f"{child:16}".encode())
        os.write(ended, f"{os.waitpid(child, 0)[1]:16}".encode())
        os._exit(0)
    os.close(ended)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGINT, heard)
    if of_its_own:
        os.setsid()
    if cores:
        os.sched_setaffinity(0, cores)
    for end, standard in ((out, 1), (err, 2)):
        os.dup2(end, standard)
        os.close(end)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def _leave(status: int) -> NoReturn:
    """Ends a fork as Python ends, but that it takes nothing apart, which takes longer than many a command."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def network(name: str = "vgg16-torchvision") -> vgg.Network:
    rng = np.random.default_rng(0)
    channels, convolutions = 3, {}
    for layer in vgg.layer_names("vgg16"):
        width = 4 * int(layer[5])
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, width)).astype(np.float32)
        convolutions[layer] = vgg.Filters(kernel, np.zeros(width, np.float32))
        channels = width
    std = [1, 1, 1] if name == "vgg16-keras" else [58, 57, 57]
    return vgg.Network(convolutions, np.float32([120, 115, 100]), np.float32(std))


if __name__ == "__main__":
    load = weights.load
    weights.load = lambda name: (
        weights.Weights(name, "vgg16", network(name), "0" * 64) if name in weights.NAMES else load(name)
    )
    weights.lpips_heads = lambda: {layer: np.ones(4 * int(layer[5]), np.float32) for layer in photo.LAYERS}
    del sys.argv[0]
    if forked := sys.argv[0].isdecimal():
        _import_all()
        sys.argv = _await_order(socket.socket(fileno=int(sys.argv[0])))
    while {"--launcher=local", "submitit.local._local"} & {*sys.argv} and (orders := _fork_server()):
        sys.argv = _await_order(orders)
    if sys.argv[0] == "experiments.benchmark":
        _fork_rows()
    try:
        if sys.argv[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if not forked or not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    if forked:
        _leave(status)
