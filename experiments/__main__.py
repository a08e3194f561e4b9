"""The commands, a line each; and with a name and flags, that command.

`python -m experiments` in a clone is `jaxstyle` where a wheel is installed, which has this folder as
`jaxstyle.experiments`: `jaxstyle stylize --size=512` is `python -m experiments.stylize --size=512`.
"""

import ast
import difflib
import pathlib
import runpy
import sys

from . import spoken


def commands() -> dict[str, str]:
    """By name, the first line of what a command says of itself."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem != "__main__" and any(
            isinstance(node, ast.FunctionDef) and node.name == "main" and not node.args.args
            for node in tree.body
        ):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> None:
    known, name = commands(), sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in known:
        del sys.argv[0]
        runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    elif name in ("--help", "--helpshort", "-h"):
        width = len(spoken("benchmark"))
        lines = [f"{spoken(name):<{width}} {line}" for name, line in known.items()]
        lines.append("--helpshort after a command lists its flags; --helpfull those of all libraries too.")
        # In one piece, unbuffered too: whoever reads the first line alone breaks no pipe.
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"is {near[0]} meant?" if near else f"there are {', '.join(known)}"
        print(f"{__package__.partition('.')[0]}: {name!r} is no command; {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
