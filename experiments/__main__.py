"""python -m experiments: the commands, a line each."""

import ast
import pathlib


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


if __name__ == "__main__":
    for name, line in commands().items():
        print(f"python -m experiments.{name:<10} {line}")
    print("--helpshort after a command lists its flags; --help all that there are.")
