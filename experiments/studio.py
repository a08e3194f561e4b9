"""A page on this machine to paint on: drop a photo and a style, choose, watch, compare, keep the picture.

python -m experiments.studio

Open the address that it prints. What it makes are ordinary runs, one after another, in folders of --workdir, where
the pictures that were dropped are kept too. It answers this machine alone. Needs the extra `studio`.
"""

import importlib.util
import pathlib
import socket

from absl import flags

from jaxstyle.errors import UserError
from jaxstyle.runs.signals import Interrupted, interruptible
from jaxstyle.runs.workdir import claimed

from . import launch

_PORT = flags.DEFINE_integer(
    "port",
    8350,
    "Of the page's address on this machine; 0 is any that is free.",
    lower_bound=0,
    upper_bound=65535,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", str(launch.RUNS), "Folder of the runs that the command shows and makes."
)


def bind(port: int) -> socket.socket:
    """A socket of this machine alone.

    Raises:
      UserError: the port is taken.
    """
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"--port={port}: {error.strerror}; another, or --port=0 for any that is free"
        ) from error


def main() -> None:
    port, folder = _PORT.value, pathlib.Path(_WORKDIR.value)
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"needs {name}; pip install 'jaxstyle[studio]' brings it")
    import uvicorn

    from . import page

    with bind(port) as listener, claimed(folder), interruptible() as signals:
        port = listener.getsockname()[1]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        print(f"studio: http://{hosts[0]}/ (Ctrl-C ends it; what it paints is kept)", flush=True)
        studio = page.Studio(folder)
        config = uvicorn.Config(
            page.application(studio, hosts),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        try:
            page.Server(config, studio).run(sockets=[listener])
        finally:
            studio.close()
    if signals:
        raise Interrupted(signals[0])


if __name__ == "__main__":
    launch.run(main)
