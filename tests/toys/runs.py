"""Toy runs: a two-layer model on a few short conversations."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sftctl import environment, jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import CheckpointError
from sftctl.model.load import load_model, save_pretrained
from sftctl.model.tokenizer.tokenizer import load_tokenizer

NUM_EXAMPLES = 22  # 6 steps of 4 an epoch, the last one short
STEPS_PER_EPOCH = 6
# Keys of a manifest that differ in another run directory: they contain paths, times or its id.
OTHER_ELSEWHERE = ("config", "files", "metrics_bytes", "run_id")
SAME_RUN = ("step", "epoch", "loss", "grad_norm", "learning_rate", "examples_digest", "num_tokens")


def toy_data(folder: Path, count: int = NUM_EXAMPLES) -> Path:
    """A file of short conversations of many lengths."""
    path = folder / "toy.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Count to {n}."},
                {"role": "assistant", "content": " ".join(map(str, range(1, n + 1)))},
            ]
        }
        for n in range(1, count + 1)
    ]
    path.write_bytes(b"".join(jsonio.dump_line(row) for row in rows))
    return path


def toy_config(folder: Path, name: str = "run", **overrides: object) -> RunConfig:
    """Two epochs, a checkpoint at every step."""
    values: dict[str, object] = {
        "output_dir": str(folder / name),
        "model.name": "tiny",
        "data.path": str(toy_data(folder)),
        "train.batch_size": 4,
        "train.micro_batch_tokens": 128,
        "checkpoint.save_interval": 1,
        "checkpoint.keep": 100,
        "tracking.log_interval": 1000,
    }
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(None, values | given)


def toy_base(folder: Path, preset: str = "tiny") -> Path:
    """A folder with a preset's random weights and the bundled tokenizer: a base for adapters."""
    path = folder / f"base-{preset}"
    if not path.is_dir():
        tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
        save_pretrained(load_model(preset, tokenizer, seed=1), tokenizer, path)
    return path


def lora_config(folder: Path, name: str = "run", **overrides: object) -> RunConfig:
    """A toy run of an adapter on `toy_base`."""
    values = {"model__name": str(toy_base(folder)), "adapter__lora": True, "adapter__rank": 4}
    return toy_config(folder, name, **values | overrides)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return list(jsonio.read_lines(run / "metrics.jsonl"))


def events_of(run: Path) -> list[str]:
    """The names of the events, in order."""
    return [line["event"] for line in jsonio.read_lines(run / "events.jsonl")]


def events_named(run: Path, name: str) -> list[dict[str, Any]]:
    """The events with this name, in order."""
    return [line for line in jsonio.read_lines(run / "events.jsonl") if line["event"] == name]


def whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file that another process may be writing; none if it is not there."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def same_run(metrics: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What must be equal to the last bit between a run and its resumed copy."""
    return [tuple(line[key] for key in SAME_RUN) for line in metrics]


def stored_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, of which each must be in one shard."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every bit is equal."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def validation_of(run: Path) -> set[tuple[Any, ...]]:
    """The results of the evaluations. A set, because a resumed run may have made one twice."""
    keys = ("step", "validation_loss", "num_target_tokens")
    lines = jsonio.read_lines(run / "events.jsonl")
    return {tuple(line[key] for key in keys) for line in lines if line["event"] == "evaluation"}


def position_of(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's manifest without OTHER_ELSEWHERE."""
    manifest = jsonio.read_object(checkpoint / "manifest.json", CheckpointError)
    return {key: value for key, value in manifest.items() if key not in OTHER_ELSEWHERE}


def signal_in_call(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """`function`; in its call `number` the last rank gets a SIGTERM first."""
    calls = iter(range(1, 10**9))

    def wrapped(*arguments: object, **keywords: object) -> object:
        is_last_rank = environment.rank() == environment.world_size() - 1
        if next(calls) == number and is_last_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    return wrapped


def half_made(folder: Path) -> set[str]:
    """Temporary folders and files: half written or half deleted."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {name for name in names if name.startswith((".tmp-", ".trash-"))}


def assert_same_end(run: Path, reference: Path, *, any_ranks: bool = False) -> None:
    """Both are finished, after the same steps, with the same model and state, bit for bit.

    `any_ranks`: their last checkpoints may be of different numbers of ranks.
    """
    metrics = metrics_of(run)
    assert [line["step"] for line in metrics] == list(range(1, len(metrics) + 1))
    assert same_run(metrics) == same_run(metrics_of(reference))
    assert validation_of(run) == validation_of(reference)
    [model] = (path.relative_to(reference) for path in reference.glob("final/*model.safetensors"))
    assert (run / model).read_bytes() == (reference / model).read_bytes()
    last, expected = (list_checkpoints(path / "checkpoints")[-1] for path in (run, reference))
    one, other = position_of(last), position_of(expected)
    if any_ranks:
        one["world_size"] = other["world_size"]
    assert one == other
    assert_same_tensors(stored_tensors(last), stored_tensors(expected))
    assert half_made(run) | half_made(run / "checkpoints") == set()
