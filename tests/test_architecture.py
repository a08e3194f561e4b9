"""The plan of the house, read from the imports: floors, pure wings, and flags that end at the door."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

#: From the ground up. A floor knows itself and those below it.
FLOORS = (
    *("errors", "files", "machine", "network", "images", "losses", "quality", "optimizers", "training"),
    *("runs", "lab", "notebook", "studio", "experiments"),
)

#: Modules that do nothing but compute.
PURE = (
    *("network/convolution.py", "network/vgg.py", "images/color.py", "images/regions.py", "images/start.py"),
    *("losses/*.py", "optimizers/*.py", "quality/*.py", "training.py"),
)

#: What these may import of ours.
ALLOWED = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for pattern in PURE
    for path in (ROOT / "jaxstyle").glob(pattern)
} | {"jaxstyle.errors"}

EFFECTS = {
    "absl",
    "PIL",
    "os",
    "time",
    "tqdm",
    "matplotlib",
    "pathlib",
    "subprocess",
    "signal",
    "logging",
    "shutil",
    "sys",
    "tempfile",
    "threading",
    "orbax",
}

MODULES = sorted([*ROOT.glob("jaxstyle/**/*.py"), *ROOT.glob("experiments/*.py")])


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found, folder = set(), path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else ()
            package = [*above, node.module] if node.module else above
            found |= {".".join([*package, alias.name]) for alias in node.names}
    return found


def floor(module: str) -> int | None:
    """The floor of a module by its dotted name, if it is one of ours."""
    package, *rest = module.split(".")
    if package == "experiments":
        return FLOORS.index("experiments")
    return FLOORS.index(rest[0]) if package == "jaxstyle" and rest and rest[0] in FLOORS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_floor_knows_those_below_it_and_none_above(path):
    if path == ROOT / "jaxstyle" / "__init__.py":
        return  # the face: it names what is exported and imports nothing itself
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own is not None, "a new floor has its place in FLOORS"
    above = {name for name in imports(path) if (other := floor(name)) is not None and other > own}
    assert not above


def calls(tree: ast.AST) -> set[str]:
    """What is called in code, by its name."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("pattern", PURE)
def test_pure_modules_have_no_effects(pattern):
    paths = list((ROOT / "jaxstyle").glob(pattern))
    assert paths
    for path in paths:
        found = imports(path)
        assert not {name.split(".")[0] for name in found} & EFFECTS, path
        assert not calls(ast.parse(path.read_text("utf-8"))) & {"open", "print", "input"}, path
        # By the number of cores mean and covariance choose an algorithm.
        allowed = ALLOWED | {"jaxstyle.machine"} if path.name == "wasserstein.py" else ALLOWED
        ours = {name for name in found if name.startswith("jaxstyle.")}
        assert not {name for name in ours if not {name, name.rpartition(".")[0]} & allowed}, path


def reads(tree: ast.AST) -> list[ast.AST]:
    """Where code reads or writes flags: `FLAGS`, or the value of a holder, which has capitals."""
    return [
        node
        for node in ast.walk(tree)
        if "FLAGS" in (getattr(node, "attr", ""), getattr(node, "id", ""))
        or (
            isinstance(node, ast.Attribute)
            and node.attr == "value"
            and (getattr(node.value, "id", None) or getattr(node.value, "attr", "")).isupper()
        )
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_end_at_the_door(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.parent.name == "experiments" and path.stem in ("settings", "launch"):
        assert reads(tree)
        return
    opening = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            opening = [read for statement in node.body[:3] for read in reads(statement)]
    assert len(reads(tree)) == len(opening), "flags are read in the first three statements of main alone"


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.py")), ids=lambda path: path.stem)
def test_commands_keep_nothing_between_calls(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions += [node for kind in tree.body if isinstance(kind, ast.ClassDef) for node in kind.body]
    for node in functions:
        for decorator in getattr(node, "decorator_list", []):
            assert "cache" not in ast.unparse(decorator)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            value, names = node.value, ast.unparse(getattr(node, "target", None) or node.targets[0])
            empty = isinstance(value, ast.Dict | ast.List | ast.Set) and not ast.unparse(value).strip("{}[]")
            empty |= value is not None and ast.unparse(value) in {"dict()", "list()", "set()"}
            assert not empty, f"{names} is a store"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_needs_scrolling(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first, *_ = node.body
            told = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            lines = node.end_lineno - node.lineno + 1 - told
            assert lines <= 50, f"{node.name} has {lines} lines besides its docstring"


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/[!_]*.py")), ids=lambda path: path.stem)
def test_the_readme_says_what_each_file_of_the_commands_is_for(path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`{path.name}`" in readme or f"| `python -m experiments.{path.stem}` |" in readme
