"""How a command starts and fails: flags, signals, JAX, and a user's mistake in one line. Where a run goes."""

import functools
import io
import math
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
from absl import app, flags, logging

from jaxstyle.errors import UserError
from jaxstyle.lab import tensorboard
from jaxstyle.runs import memory, processes, workdir
from jaxstyle.runs.signals import Interrupted

from . import program_cache, settings, spoken, usage

OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete the run in --workdir, be it of the same flags, and begin anew."
)
CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds",
    30.0,
    "Seconds between checkpoints, from which a run goes on; more where writing them took more than 2.5 % of its "
    "time. 0 is one after every step.",
    lower_bound=0,
)
TENSORBOARD = flags.DEFINE_bool(
    "tensorboard",
    False,
    "Write event files for TensorBoard too: losses by step and by evaluation, step sizes, the image every "
    "--save_every steps or as often as checkpoints, hyperparameters (extra tensorboard).",
)
flags.register_validator("checkpoint_seconds", math.isfinite, "must be a number")
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Spread a picture's rows, or the lanes of a sweep, over so many devices; by default all GPUs, or one CPU, which "
    "is shared by as many as are asked for. --processes have equal shares. What runs on the host, and a job of "
    "--launcher, takes one.",
    lower_bound=1,
    upper_bound=1024,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 where --processes make a picture together, each by the same command but for --process. "
    "srun of SLURM and mpirun of Open MPI tell all three.",
)
PROCESSES = flags.DEFINE_integer(
    "processes",
    None,
    "How many there are, on this machine or others; 1 is alone, by srun too.",
    lower_bound=1,
)
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs; by default $JAX_COMPILATION_CACHE_DIR or jaxstyle in the user's cache folder, "
    "none if empty.",
)
flags.adopt_module_key_flags(settings)

#: Flags that are not recorded and may name any path.
_PATHS = ("workdir", "output", "result", "compilation_cache")

#: Flags that every command takes, in its help or not: see `runtime`.
_OF_EACH = ("deterministic", "compilation_cache", "coordinator", "processes", "process")

#: The variables as this process was given them, with which others are started.
ENVIRONMENT = dict(os.environ)

#: Where a run goes that is given no --workdir.
RUNS = pathlib.Path("runs")


def define_workdir(name: str) -> flags.FlagHolder[str | None]:
    """The flag of a command whose runs go to a folder of this `name` by default."""
    text = (
        f"Where the command writes. By default runs/{name}, or the first of -2, -3 … that is free or goes on."
    )
    return flags.DEFINE_string("workdir", None, text)


def find_workdir(where: str | None, name: str, record: str, changeable: Collection[str]) -> pathlib.Path:
    """--workdir as it is given, or else the folder of this name: see `workdir.find`."""
    return workdir.find(RUNS, name, record, changeable) if where is None else pathlib.Path(where)


def in_workdir(
    where: str | None,
    name: str,
    record: str,
    changeable: Collection[str],
    work: Callable[[pathlib.Path], None],
) -> None:
    """Has work claim what `find_workdir` finds. Of commands that found one folder at once, the others look again.

    They do so whether the one that was first is still at work there or has ended.

    Raises:
      UserError: what work raises; of a folder that is held or has a run of other flags, where it is --workdir or
        would be found again.
    """
    while True:
        directory = find_workdir(where, name, record, changeable)
        try:
            work(directory)
            return
        except (workdir.HeldError, workdir.OtherRunError):
            if where is not None:
                raise
            time.sleep(0.1)  # until the other, which took it meanwhile, has recorded what it makes
            begun = processes.first((directory / "run.flags").is_file)
            if begun and find_workdir(where, name, record, changeable) == directory:
                raise


class Company(NamedTuple):
    """The processes that make a run together, and which this is. Without a coordinator JAX finds them."""

    coordinator: str | None
    count: int
    index: int


#: Variables in which what starts processes tells how many there are, and which this is.
_RANKS = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


def company(coordinator: str | None, count: int | None, index: int | None) -> Company | None:
    """The processes that this one is of, or None if it is alone: as flags tell, or else its variables.

    Raises:
      UserError: the flags do not fit together, or the variables tell no numbers.
    """
    if count == 1:
        return None
    given = coordinator, count, index
    for many, which in _RANKS:
        if (told := _number(many) or 1) > 1:
            count, index = count or told, _number(which) if index is None else index
            if index is None:
                raise UserError(
                    f"{many}={told}: needs {which} too; without both, or by --processes=1, one is alone"
                )
            break
    else:
        if given.count(None) in (1, 2):
            raise UserError("--coordinator, --processes and --process: are given together, in each process")
    if count is None:
        return None
    address = re.fullmatch(r".+:(\d{1,5})", coordinator or "any:1")
    if not address or not 0 < int(address[1]) < 2**16:
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT of process 0")
    if index >= count:
        raise UserError(f"--process={index}: the {count} of --processes are numbered from 0")
    return Company(coordinator, count, index)


def _number(variable: str) -> int | None:
    """What an environment variable holds; None where it is not set, or empty.

    Raises:
      UserError: it is no number.
    """
    text = os.environ.get(variable)
    if text and not text.isdecimal():
        raise UserError(f"{variable}={text}: must be a number of 0 or more")
    return int(text) if text else None


class Runtime(NamedTuple):
    """What a process sets up before JAX starts: see the flags of these names. No `compilation_cache` is empty."""

    deterministic: bool
    compilation_cache: str
    devices: int | None
    company: Company | None = None


def runtime() -> Runtime:
    """The flags of this process.

    Raises:
      UserError: see `company`.
    """
    folder = COMPILATION_CACHE.value
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = "" if cache.startswith("~") else os.path.join(cache, "jaxstyle")  # nobody's home
    together = company(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    return Runtime(flags.FLAGS["deterministic"].value, folder, DEVICES.value, together)


class Conduct(NamedTuple):
    """How a run goes, which does not change what it is: see the flags of these names."""

    overwrite: bool
    checkpoint_seconds: float
    tensorboard: bool


def conduct() -> Conduct:
    """The flags of this process.

    Raises:
      UserError: what --tensorboard needs is not installed.
    """
    if TENSORBOARD.value:
        tensorboard.check()
    return Conduct(OVERWRITE.value, CHECKPOINT_SECONDS.value, TENSORBOARD.value)


def started() -> list[jax.Device]:
    """All devices of JAX, which starts with this.

    Raises:
      UserError: JAX_PLATFORMS asks for what is not here.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # Of a platform that it knows but has no plugin for JAX says nothing.
        if str(error) and "Unable to initialize backend" not in str(error):
            raise
        name = jax.config.jax_platforms
        raise UserError(
            f"JAX_PLATFORMS={name}: JAX finds no such device here; without it, it takes what there is"
        ) from error


def devices() -> list[jax.Device]:
    """The devices that --devices asks for, of each process as many.

    Raises:
      UserError: there are not as many, or see `started`.
    """
    found, count, several = started(), DEVICES.value, jax.process_count()
    if count is None:
        count = several if found[0].platform == "cpu" else len(found)
    if count > len(found):
        raise UserError(f"--devices={count}: there are {len(found)}; take as many or fewer")
    if count % several or len(found) % several:
        raise UserError(f"--devices={count}: {several} processes cannot have equal shares of {len(found)}")
    own = [[device for device in found if device.process_index == index] for index in range(several)]
    return [device for some in own for device in some[: count // several]]


def run(main: Callable[[], None], several: bool = False) -> None:
    """Starts a command: parses flags, sets JAX up, and turns a user's mistake into one line and status 2.

    Args:
      main: the command.
      several: whether several processes can run it together.
    """
    sys.stdout = _unbroken(sys.stdout, "standard output")
    sys.stderr = _unbroken(sys.stderr, None)  # nowhere else is left to tell of it
    # absl calls the module that was started by how it was.
    command = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    app.run(functools.partial(_guarded, main, several), flags_parser=functools.partial(_parse, command))


class _Pipe(io.FileIO):
    """What nobody reads any more is written to nobody: a run does not depend on its reader.

    A full disk is told, once, if the stream is told a name.
    """

    def __init__(self, descriptor: int, told: str | None):
        super().__init__(descriptor, "w")
        self._told = told

    def write(self, data: bytes) -> int:
        """Writes all or a part, or nothing that can be kept; the number of bytes that are done with is returned.

        Raises:
          UserError: the disk is full or fails.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            pass
        except OSError as error:
            told, self._told = self._told, None
            if told:
                raise UserError(f"{told}: cannot be written: {error.strerror}") from error
        return memoryview(data).nbytes


def _unbroken(stream: io.TextIOWrapper | None, told: str | None) -> io.TextIOWrapper:
    if stream is None:  # closed from the start
        return open(os.devnull, "w")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(os.dup(stream.fileno()), told)),  # C++ has the other for itself
        encoding=stream.encoding,
        errors="backslashreplace",  # a file name need not be Unicode
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _help() -> str:
    about = sys.modules["__main__"].__doc__ or ""
    about = re.sub(r"python -m experiments\.(\w+)", lambda name: spoken(name[1]), about)
    return usage.text(about, flags.FLAGS.get_key_flags_for_module(sys.argv[0]))


def _parse(command: str, arguments: Sequence[str]) -> Sequence[str]:
    try:
        if {"--help", "--helpshort", "-help", "-helpshort", "-?", "-h"} & set(arguments[1:]):
            print(_help(), end="", flush=True)
            sys.exit()
        rest = flags.FLAGS(_expanded(arguments))
        if rest[1:]:
            raise UserError(f"{rest[1]!r} is not a flag; flags are written --name=value")
        _check_flags(command)
    # ValueError: a flagfile whose name has a null character
    except (flags.Error, UserError, ValueError) as error:
        _fail(error)
    return rest


def _expanded(arguments: Sequence[str], within: Sequence[str] = ()) -> list[str]:
    """The arguments with flagfiles read. What comes after one wins, a repeatable flag over all of its name in it.

    Args:
      arguments: of a command line, or the lines of a flagfile.
      within: the flagfiles that these are in, from the outermost.

    Raises:
      UserError: a flagfile cannot be read.
    """
    given = list(arguments)
    groups: list[tuple[list[str], bool]] = []
    while given:
        first = given.pop(0)
        named = _name(first) == "flagfile" and first.startswith("-")
        if named and "=" not in first:
            if not given:
                raise UserError("--flagfile with no argument")
            first = f"--flagfile={given.pop(0)}"
        group = _lines(first.partition("=")[2].strip(), within) if named else [_at_home(first)]
        groups.append((group, named))
    found: list[str] = []
    later: set[str] = set()
    for group, is_file in reversed(groups):
        names = [_name(each) for each in group if each.startswith("-")]
        if is_file:
            group = [each for each in group if not (_name(each) in later and _repeatable(_name(each)))]
        later.update(names)
        found = group + found
    return found


def _lines(name: str, within: Sequence[str]) -> list[str]:
    """The flags of a flagfile, as absl reads them: none of no name, and of one that is read already."""
    path = os.path.expanduser(name)
    if path in within:
        print(f"--flagfile={path}: names itself, which is left out", file=sys.stderr)
    if not path or path in within:
        return []
    try:
        with open(path) as file:  # in the locale's encoding
            lines = [line.removeprefix("\ufeff").strip() for line in file]  # which Windows puts before a text
    except OSError as error:
        raise UserError(f"--flagfile={path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--flagfile={path}: cannot decode its text as {error.encoding}: {error.reason}; it must be UTF-8, which "
            "PYTHONUTF8=1 in front of the command reads in any locale"
        ) from error
    flags_ = [line for line in lines if line and not line.startswith(("#", "//"))]
    return _expanded(flags_, (*within, path))


def _at_home(argument: str) -> str:
    """`--name=~/path` with the user's home folder, which a shell puts in only where `~` begins a word."""
    name, _, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if value.startswith("~/") else argument


def _name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0]


def _repeatable(name: str) -> bool:
    return name in flags.FLAGS and isinstance(flags.FLAGS[name], flags.MultiFlag)


def _check_flags(command: str) -> None:
    """Refuses flags of other commands, a folder of no name, and what is no single line where it is no path.

    Raises:
      UserError: one was given.
    """
    heeded = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(command)}.union(_OF_EACH)
    for module, known in flags.FLAGS.flags_by_module_dict().items():
        for flag in known if module == command or module.startswith(__package__) else ():
            if flag.present and flag.name not in heeded:
                raise UserError(
                    f"--{flag.name}: is no flag of this command; --helpshort lists those that are"
                )
            if flag.name == "workdir" and flag.value == "":
                raise UserError("--workdir=: must name a folder; . is this one")
            if flag.name in _PATHS or isinstance(flag.parser, settings.PathParser):
                continue
            texts = flag.value if isinstance(flag.value, list) else [flag.value]
            if not all(str(text).isprintable() for text in texts):
                raise UserError(f"--{flag.name}={flag.value!r}: must be one line of printable characters")


def _fail(error: Exception) -> None:
    print(f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
    processes.leave(2)
    sys.exit(2)


def _guarded(main: Callable[[], None], several: bool, _: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    end_on_signals()
    try:
        _check_folder()
        given = runtime()
        if given.company and not several:
            raise UserError(
                f"--processes={given.company.count}: is for stylize and compare; with 1 each is alone"
            )
        set_up(given)
        main()
        sys.stdout.flush()
    except UserError as error:
        _fail(error)
    except Interrupted as interruption:
        again = "the same command" + " without --overwrite" * OVERWRITE.value
        print(f"interrupted by {interruption}; {again} goes on from here", file=sys.stderr)
        sys.exit(interruption.exit_status)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            _fail(UserError(f"{os.fsdecode(error.filename)!r}: {error.strerror}"))
        if isinstance(error, jax.errors.JaxRuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED"):
            _fail(_out_of_memory(error))
        processes.await_verdict(error)
        raise


def _out_of_memory(error: Exception) -> UserError:
    """What a device says that had less memory than it told: others use it as well, or what was freed is in pieces."""
    first, *_ = str(error).splitlines()
    return UserError(
        f"--size: the device has too little memory left ({first}); a smaller picture, --strips or --remat needs "
        "less, and what else runs on it may hold a part"
    )


def _check_folder() -> None:
    """Makes sure that there is a current folder, which relative paths are in and libraries ask for.

    Raises:
      UserError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError(
            "the current folder was deleted; the command needs to be started in another"
        ) from error


def end_on_signals() -> None:
    """Has SIGINT and SIGTERM end the process at once, with status 130 or 143, and without a traceback.

    Python's own handlers would wait until XLA has compiled. Nothing is lost: where a run has something to
    keep, it takes the signals over (see `signals.interruptible`).
    """
    receiver, sender = socket.socketpair()  # on Windows nothing else will do
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        number = receiver.recv(1)[0]
        sender.close()  # until here it must not be collected
        os.write(2, f"interrupted by {signal.Signals(number).name}; the same command starts again\n".encode())
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def set_up(given: Runtime) -> None:
    """Prepares this process for JAX, which has not started yet.

    Raises:
      UserError: it is one of several that are not there, or were given other flags.
    """
    memory.use_one_arena()
    if given.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if given.devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        own = -(-given.devices // (given.company.count if given.company else 1))
        jax.config.update("jax_num_cpu_devices", own)  # which a GPU does not mind
    jax.config.update("jax_compilation_cache_dir", given.compilation_cache or None)
    if given.compilation_cache:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        program_cache.watch(given.compilation_cache)
    if given.company:
        processes.join(*given.company)
        said = flags.FLAGS.flag_values_dict()
        processes.check_alike({f"--{name}": str(value) for name, value in said.items() if name != "process"})
