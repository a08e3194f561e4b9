"""The folder of compiled programs, as JAX keeps it: what a full disk or a kill left of one is not met a second time.

JAX writes a program in place and never again where a file is. One that was cut short is read, warned of and compiled
at each start from then on.
"""

import pathlib
import re
import sys
import warnings
from typing import Any

_WARNING = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL
)

_SAYS = {
    "reading": "a damaged program is there; it is compiled again",
    "writing": "cannot write there; compiled programs are not kept",
}


def watch(folder: str) -> None:
    """Has JAX's warnings of the folder told in a line each, once, and what they are about taken out of it."""
    told: set[str] = set()
    otherwise = warnings.showwarning

    def show(message: Warning | str, *where: Any, **also: Any) -> None:
        found = _WARNING.match(str(message))
        if not found:
            otherwise(message, *where, **also)
            return
        what, program, why = found.groups()
        remove(folder, program)
        if what not in told:
            told.add(what)
            print(f"--compilation_cache={folder}: {_SAYS[what]} ({' '.join(why.split())})", file=sys.stderr)

    warnings.filterwarnings("always", "Error .* persistent compilation cache")
    warnings.showwarning = show


def remove(folder: str, program: str) -> None:
    """Deletes what is there of a program, for all shapes: JAX does not tell which of them it met."""
    for path in pathlib.Path(folder).glob(f"{program}-*"):
        path.unlink(missing_ok=True)
