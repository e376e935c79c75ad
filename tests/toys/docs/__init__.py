"""Small things under the names that the pages use, for their commands to work on."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import CliRunner

from sftctl.cli.app import app
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.foreign import save_minimind, train_by_trainer
from tests.toys.runs import toy_data

NUM_ROWS = 20
RUN = """
[model]
name = "tiny"
[data]
path = "{rows}"
[train]
epochs = 2
batch_size = 1
[checkpoint]
save_interval = 20
"""


def chats(path: Path, num_rows: int = NUM_ROWS) -> None:
    """A few conversations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    toy_data(path.parent, num_rows).rename(path)


def zipped_chats(path: Path) -> None:
    """The same, compressed."""
    chats(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def sums(path: Path) -> None:
    """A JSON array of Alpaca's shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"Add 1 to {n}.", "output": f"{n + 1}"} for n in range(40)]
    path.write_text(json.dumps(rows), encoding="utf-8")


def store(path: Path) -> None:
    """Prepared conversations, some for validation."""
    chats(path.with_suffix(".jsonl"))
    said("prepare-data", path.with_suffix(".jsonl"), "--val-fraction", 0.3, "--output", path)


def toml(path: Path) -> None:
    """A run of 40 steps that saves every 20."""
    rows = path.with_suffix(".rows.jsonl")
    chats(rows)
    path.write_text(RUN.format(rows=rows), encoding="utf-8")


def run(path: Path) -> None:
    """The same, finished."""
    toml(path.with_suffix(".toml"))
    said("train", path.with_suffix(".toml"), "--output-dir", path)


def model(path: Path) -> None:
    """A Hugging Face directory."""
    run(path.with_name(f"{path.name}-run"))
    said("export", path.with_name(f"{path.name}-run"), "--output", path)


def tokenizer(path: Path) -> None:
    """The bundled one."""
    shutil.copytree(SAMPLE_TOKENIZER, path)


def question(path: Path) -> None:
    """A line to answer."""
    path.write_text("What is the capital of Sweden?\n", encoding="utf-8")


def of_a_trainer(path: Path) -> None:
    """What transformers' Trainer saves."""
    train_by_trainer(path)


def of_minimind(path: Path) -> None:
    """What MiniMind saves to resume."""
    save_minimind(path.parent)[0].rename(path)


class Trap:
    """An object that would run a program if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch it-ran",)


def trap(path: Path) -> None:
    """A torch file that names a program to run."""
    torch.save({"step": 1, "x": Trap()}, path)


def said(*words: object) -> None:
    """A command that must work."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


Toys = dict[str, Callable[[Path], None]]
REAL_ROWS = ("alpaca_en_demo.json", "alpaca_zh_demo.json", "glaive_toolcall_en_demo.json")
SHARED: Toys = {f"../shared/data/{name}": sums for name in REAL_ROWS}
SHARED["../shared/data/minimind_tokenizer"] = tokenizer
ON_PAGE: dict[str, Toys] = {
    "README.md": {"chats.jsonl": chats},
    "adapters.md": {"base": model, "rows.jsonl": chats},
    "architecture.md": {"run.toml": toml},
    "bench-loader.md": SHARED,
    "config.md": {"config.toml": toml},
    "data.md": {
        "INPUT": chats,
        "chats.jsonl": chats,
        "more/rows.jsonl.gz": zipped_chats,
        "exported/rows.jsonl": chats,
        "huge.jsonl.gz": zipped_chats,
    },
    "distributed.md": {"run.toml": toml, "runs/x": run},
    "inspect-ckpt.md": {
        "PATH": run,
        "A": run,
        "B": run,
        "RUN": run,
        "trap.pth": trap,
        "hf": of_a_trainer,
        "full_sft_512_resume.pth": of_minimind,
    },
    "migrating.md": {
        "DIR": model,
        "RUN_DIR": run,
        "FILE": toml,
        "full_sft_768_resume.pth": of_minimind,
    },
    "preflight.md": {"chats.jsonl": chats},
    "real-runs.md": SHARED | {"sums.jsonl": chats, "run": run},
    "resume.md": {"run.toml": toml, "RUN": run},
    "serve.md": {"store": store, "runs/x": run, "runs/y": run, "question.txt": question},
    "train.md": {
        "store": store,
        "chats.jsonl": chats,
        "run.toml": toml,
        "SmolLM2": model,
    },
}
"""Files that a page needs and that its own commands do not make."""


def make_toys(page: str, folder: Path) -> None:
    """Make the files that a page needs, in the folder where its commands are typed."""
    for name, make in ON_PAGE.get(page, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)
