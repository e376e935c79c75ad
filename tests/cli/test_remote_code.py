"""No command runs the Python files of a model or tokenizer, whatever stdin answers."""

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sftctl as package
from sftctl.checkpoint.layout import MANIFEST_HASH_NAME, MANIFEST_NAME, read_manifest
from sftctl.checkpoint.sealed import is_sealed, problems_of_sealed, read_seal, seal
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.source import on_stderr
from tests.toys.commands import Result
from tests.toys.data import row, written
from tests.toys.runs import toy_config

Sftctl = Callable[..., Result]


@pytest.fixture
def yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every question on stdin is answered with `y`."""
    answers = tmp_path / "answers"
    answers.write_text("y\n" * 1000)
    before = os.dup(0)
    with answers.open() as stdin:
        os.dup2(stdin.fileno(), 0)
        monkeypatch.setattr("sys.stdin", stdin)
        yield
    os.dup2(before, 0)
    os.close(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; do not write into it."""
    from sftctl.train.run import run_training

    folder = tmp_path_factory.mktemp("finished")
    run_training(toy_config(folder, train__epochs=2, train__batch_size=22))
    return folder / "run"


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile code makes when it runs; it must not exist at the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def with_code(folder: Path, canary: Path, *files: str) -> Path:
    """Make these configuration files name Python files that write the canary."""
    for name in files:
        values: dict[str, Any] = json.loads((folder / name).read_text())
        values |= {"model_type": "other", "tokenizer_class": "OtherTokenizer"}
        values["auto_map"] = {
            "AutoConfig": "configuration_x.XConfig",
            "AutoModelForCausalLM": "modeling_x.XForCausalLM",
            "AutoTokenizer": ["tokenization_x.XTokenizer", "tokenization_x.XTokenizer"],
        }
        (folder / name).write_text(json.dumps(values))
    (folder / "custom_generate").mkdir(exist_ok=True)
    modules = ["configuration_x", "modeling_x", "tokenization_x", "custom_generate/generate"]
    for module in modules:
        (folder / f"{module}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    return folder


def seal_again(folder: Path, run: Path) -> None:
    """Seal a copy of `final/` again; otherwise its manifest refuses the folder before its code."""
    found = read_seal(folder)
    for name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
        (folder / name).unlink()
    origin = read_manifest(run / "checkpoints" / f"step-{found.step:08d}")
    seal(folder, origin, str(found.run_id), found.last_step, found.choice)
    assert problems_of_sealed(folder) == []


MODEL = ("config.json",)
ALL = ("config.json", "tokenizer_config.json")
COMMANDS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "train": ("model", MODEL, ["train", "--model", "model", "--data", "rows.jsonl"]),
    "dry run": ("model", ALL, ["train", "--model", "model", "--data", "rows.jsonl", "--dry-run"]),
    "ranks": (
        "model",
        MODEL,
        ["train", "--model", "model", "--data", "rows.jsonl", "--nproc-per-node", "2"],
    ),
    "tokenizer": ("model", ALL, ["prepare-data", "rows.jsonl", "--tokenizer", "model"]),
    "loader": ("model", ALL, ["bench-loader", "--data", "rows.jsonl", "--source", "text"]),
    "resume": ("run/model", MODEL, ["resume", "run", "--epochs", "3"]),
    "replay": ("run/model", MODEL, ["resume", "run", "--verify-replay"]),
    "chat": ("run/final", ALL, ["chat", "run", "--prompt", "hello"]),
    "chat with a folder": ("model", ALL, ["chat", "model", "--prompt", "hello"]),
    "export": ("model", ALL, ["export", "model", "--output", "exported"]),
    "inspect": ("model", ALL, ["inspect-ckpt", "model"]),
    "inspect a run": ("run/model", ALL, ["inspect-ckpt", "run", "--verify"]),
    "report": ("run/model", ALL, ["report", "run"]),
}


@pytest.mark.usefixtures("yes")
@pytest.mark.parametrize(("folder", "files", "command"), COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_code_of_a_model(
    tmp_path: Path,
    canary: Path,
    finished: Path,
    sftctl: Sftctl,
    folder: str,
    files: tuple[str, ...],
    command: list[str],
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(finished / "final", tmp_path / "model")
    written(tmp_path / "rows.jsonl", [row(f"Name {n}") for n in range(40)])
    if is_sealed(with_code(tmp_path / folder, canary, *files)):
        seal_again(tmp_path / folder, finished)
    if command[0] == "prepare-data":
        command = [*command, "--output", "store"]
    result = sftctl(*command)
    assert "Traceback" not in result.stderr
    assert "[y/N]" not in result.stdout + result.stderr
    if command[0] in ("inspect-ckpt", "report", "bench-loader"):
        return  # they load no model
    assert result.exit_code == 2
    assert "needs Python code of its own" in result.error
    assert "_x.py, named by auto_map in " in result.error


def test_code_that_is_not_needed_is_not_run(
    tmp_path: Path, yes: None, canary: Path, sftctl: Sftctl
) -> None:
    """A tokenizer that transformers knows, with an auto_map beside it, is loaded without it."""
    folder = Path(shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "tokenizer"))
    with_code(folder, canary, "tokenizer_config.json")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    rows = written(tmp_path / "rows.jsonl", [row("Name one")])
    result = sftctl("prepare-data", rows, "--tokenizer", folder, "--output", "out")
    assert result.exit_code == 0
    assert code_not_run(result, folder / "tokenizer_config.json", "configuration_x.py")


def code_not_run(result: Result, named_by: Path, first: str) -> bool:
    """Whether stderr has one line, ours, about code: that it is not run, and what names it."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    start = f"warning: {named_by.parent}: not run: {first}"
    return line.startswith(start) and f"named by auto_map in {named_by}" in line


@pytest.mark.parametrize("changes", [{}, {"model_type": "other"}])
def test_one_line_names_the_code_of_a_model_beside_a_tokenizer(
    tmp_path: Path,
    yes: None,
    canary: Path,
    finished: Path,
    sftctl: Sftctl,
    changes: dict[str, str],
) -> None:
    """This holds even if transformers does not know the model."""
    folder = shutil.copytree(finished / "final", tmp_path / "model")
    known = json.loads((folder / "config.json").read_text())
    with_code(folder, canary, "config.json")
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": known["model_type"]} | changes
    (folder / "config.json").write_text(json.dumps(values))
    for name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
        (folder / name).unlink()
    rows = written(tmp_path / "rows.jsonl", [row("Name one")])
    result = sftctl("prepare-data", rows, "--tokenizer", folder, "--output", tmp_path / "out")
    assert code_not_run(result, folder / "config.json", "configuration_x.py, modeling_x.py")
    if not changes:
        on_stderr.cache_clear()
        result = sftctl("export", folder, "--output", tmp_path / "exported")
        assert code_not_run(result, folder / "config.json", "configuration_x.py, modeling_x.py")
        for name in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in (tmp_path / "exported" / name).read_text()


def test_every_call_of_transformers_says_that_code_is_not_trusted() -> None:
    root = Path(package.__file__).parent
    unsafe = []
    for file in sorted(root.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            text = ast.unparse(call)
            is_call = call.func.attr in ("from_pretrained", "from_config")
            if not is_call or not ("Auto" in text or "tokenizer_class" in text):
                continue
            safe = ("trust_remote_code=False", "**NO_CODE", "**source.arguments")
            if not any(mark in text for mark in safe):
                unsafe.append(f"{file.relative_to(root)}: {text}")
    assert unsafe == []
