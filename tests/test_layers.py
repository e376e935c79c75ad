"""The layers of docs/architecture.md: imports point down, and each library has its files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sftctl

PACKAGE = Path(sftctl.__file__).parent

# Top to bottom. Rooms of one layer don't import each other; `version` is sftctl/__init__.py.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"bench"},
    {"train", "inspection", "report", "trained"},
    {"runs"},
    {"data"},
    {"model", "checkpoint", "openmp"},
    {"tracking", "world", "config", "machine", "folders"},
    {"metrics", "jsonio", "disk", "rendezvous"},
    {"environment", "processes"},
    {"errors", "version", "words", "rank_variables"},
]
HEIGHT = {room: -depth for depth, layer in enumerate(LAYERS) for room in layer}

HOMES = {
    "typer": ["cli/*"],
    "wandb": ["tracking/wandb.py"],
    "tensorboard": ["tracking/tensorboard.py"],
    "trackio": ["tracking/trackio.py"],
    "swanlab": ["tracking/swanlab.py"],
    "orjson": ["jsonio.py"],
    "transformers": ["model/*"],
    "peft": ["model/adapter/*"],
    "bitsandbytes": ["model/adapter/nf4.py"],
    "rich": ["cli/show/*.py", "tracking/console.py"],
    "torch": [
        "model/*",
        "data/*",
        "checkpoint/*",
        "train/*",
        "trained/*",
        "bench/*",
        "world.py",
        "rendezvous.py",
    ],
    "click": [],
    "pickle": ["model/minimind.py", "model/folder/pickled_tensors.py"],  # the name of an error
}


@dataclass(frozen=True)
class Import:
    file: str  # below the package, as a/b.py
    line: int
    module: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(tree: ast.Module, file: str) -> Iterator[Import]:
    """Every import of a module, also inside functions, but not those for types alone."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        match node:
            case ast.Import(names=names):
                yield from (Import(file, node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module="sftctl", names=names):
                yield from (Import(file, node.lineno, f"sftctl.{alias.name}") for alias in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                imported = tuple(alias.name for alias in names)
                yield Import(file, node.lineno, "." * level + (module or ""), imported)


def room_of(module: str) -> str:
    """`sftctl.data.plan` -> data; the package's own attributes are the version."""
    room = module.split(".")[1] if "." in module else "version"
    return "version" if room == "__version__" else room


SOURCES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {file: ast.parse(path.read_text(encoding="utf-8")) for file, path in SOURCES.items()}
IMPORTS = [found for file, tree in TREES.items() for found in imports_of(tree, file)]


def room_of_file(file: str) -> str:
    return "version" if file == "__init__.py" else Path(file).parts[0].removesuffix(".py")


def test_every_file_belongs_to_a_layer() -> None:
    assert len(SOURCES) > 40
    assert {room_of_file(file) for file in SOURCES} <= HEIGHT.keys()


def misplaced(imports: list[Import]) -> list[str]:
    wrong = []
    for found in imports:
        here = room_of_file(found.file)
        if found.module.split(".")[0] != "sftctl" or here == room_of(found.module):
            continue
        if HEIGHT[here] <= HEIGHT[room_of(found.module)]:
            wrong.append(str(found))
    return wrong


def test_imports_point_down_and_packages_of_a_layer_do_not_import_each_other() -> None:
    assert misplaced(IMPORTS) == []


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("model/load.py", "from sftctl.data import store"),
        ("data/store.py", "from sftctl.train.run import run_training"),
        ("config/load.py", "import sftctl.world"),
        ("disk.py", "from sftctl import jsonio"),
        ("errors.py", "from sftctl.jsonio import loads"),
        ("world.py", "def f():\n    from sftctl.cli import app"),
    ],
)
def test_the_layer_test_sees_a_wrong_import(file: str, statement: str) -> None:
    assert len(misplaced(list(imports_of(ast.parse(statement), file)))) == 1


def test_an_import_for_types_alone_is_allowed() -> None:
    source = "if TYPE_CHECKING:\n    from sftctl.train.run import run_training"
    assert list(imports_of(ast.parse(source), "data/store.py")) == []


def test_imports_are_absolute() -> None:
    assert [str(found) for found in IMPORTS if found.module.startswith(".")] == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_in_its_listed_files(library: str) -> None:
    strays = [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == library
        and not any(fnmatch(found.file, home) for home in HOMES[library])
    ]
    assert strays == []


def environment_uses(tree: ast.Module) -> list[str]:
    """Statements that touch os.environ or its functions, as text."""
    names = ("environ", "environb", "getenv", "putenv", "unsetenv")
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
        and not isinstance(
            node, (ast.FunctionDef, ast.ClassDef, ast.With, ast.If, ast.For, ast.Try)
        )
        and any(
            (isinstance(inner, ast.Attribute) and inner.attr in names)
            or (isinstance(inner, ast.alias) and inner.name in names)
            for inner in ast.walk(node)
        )
    ]


def test_environment_variables_are_read_in_one_file() -> None:
    uses = {file: environment_uses(tree) for file, tree in TREES.items()}
    assert uses.pop("environment.py")
    uses["train/launch.py"] = [
        use for use in uses["train/launch.py"] if not use.startswith("os.environ['")
    ]  # it may set what its child processes read
    assert {file: found for file, found in uses.items() if found} == {}


def callers(name: str) -> set[str]:
    """Files that call a function or class by this name."""
    return {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }


def test_how_a_step_is_shaped_is_decided_in_one_file() -> None:
    assert callers("StepShape") == {"data/step_shape.py"}
    asked = {
        "train/opening.py",
        "train/preflight/proposal.py",
        "train/preflight/duration.py",
        "bench/sweep.py",
        "bench/step_time.py",
    }
    assert callers("step_shape") == asked


def modules_imported_by(file: str) -> set[str]:
    """The package's own files that a file imports."""
    found = set[str]()
    for each in IMPORTS:
        if each.file == file and each.module.startswith("sftctl."):
            path = each.module.removeprefix("sftctl.").replace(".", "/")
            found |= {f"{path}.py", *(f"{path}/{name}.py" for name in each.names)}
    return found & SOURCES.keys()


def test_no_file_imports_itself_through_others() -> None:
    try:
        TopologicalSorter({file: modules_imported_by(file) for file in SOURCES}).prepare()
    except CycleError as cycle:
        pytest.fail(" -> ".join(cycle.args[1]))


MOST_LINES = 290
MOST_LINES_OF_A_FUNCTION = 60
MOST_ENTRIES_OF_A_FOLDER = 16


def test_no_file_is_too_long() -> None:
    lengths = {file: len(path.read_text().splitlines()) for file, path in SOURCES.items()}
    assert {file: n for file, n in lengths.items() if n > MOST_LINES} == {}


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{file}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("root", [PACKAGE], ids=["sftctl"])
def test_no_folder_has_too_many_entries(root: Path) -> None:
    """The top folders are exempt. Empty __init__ files and caches do not count."""
    counts = {
        str(folder.relative_to(root)): len(
            [
                path
                for path in folder.iterdir()
                if path.name != "__pycache__"
                and not (path.name == "__init__.py" and not path.read_bytes())
            ]
        )
        for folder in root.rglob("*")
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert {name: n for name, n in counts.items() if n > MOST_ENTRIES_OF_A_FOLDER} == {}


def test_the_machine_is_asked_in_one_file() -> None:
    assert [found.file for found in IMPORTS if found.module == "resource"] == ["machine.py"]
    strings = {
        file: [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        for file, tree in TREES.items()
    }
    asking = {
        file
        for file, values in strings.items()
        for value in values
        if isinstance(value, str) and value.startswith(("/proc", "/sys/", "proc/"))
    }
    assert asking == {"machine.py"}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "numpy", "wandb", "tokenizers", "safetensors"]
    code = f"import sys, sftctl.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_help_works_without_loading_torch() -> None:
    done = run_python("-X", "importtime", "-m", "sftctl", "--help")
    assert done.returncode == 0
    for command in ("prepare-data", "train", "resume", "inspect-ckpt", "bench-loader", "chat"):
        assert command in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sftctl.cli.app" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "wandb"}


def test_data_is_prepared_without_loading_torch(tmp_path: Path) -> None:
    """Neither the command nor its workers, which are its forks."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    command = ["prepare-data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "store")]
    code = f"""
import sys
from sftctl.cli.app import app
try:
    app({command})
except SystemExit as end:
    print(end.code, [name for name in ("torch", "numpy") if name in sys.modules], file=sys.stderr)
"""
    assert run_python("-c", code).stderr.splitlines()[-1] == "0 ['numpy']"
