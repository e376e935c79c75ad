"""Checkpoints, adapters and split models of which a file is lost: the report names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sftctl import jsonio
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.inspection.inspect import inspect_path
from sftctl.model.gguf.file import require_whole_model
from sftctl.model.gguf.kind import require_readable
from sftctl.trained.checks import kind_of
from tests.toys.foreign import gguf_key, gguf_tensor, write_gguf

LORA = {f"base_model.model.x.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
SETTINGS = {"peft_type": "LORA", "r": 2, "target_modules": ["x"], "base_model_name_or_path": "a/b"}


def adapter(folder: Path, name: str = "adapter_model.safetensors", *, described: bool) -> Path:
    """The weights of an adapter, with their settings or without."""
    if name.endswith(".bin"):
        torch.save(LORA, folder / name)
    else:
        save_file(LORA, folder / name)
    if described:
        (folder / "adapter_config.json").write_bytes(jsonio.dump_line(SETTINGS))
    return folder


def trainer(folder: Path, *names: str) -> Path:
    """A Trainer's checkpoint with empty states in the named files."""
    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_bytes(jsonio.dump_line({"global_step": 5}))
    for name in ("optimizer.pt", "scheduler.pt", *names):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        torch.save({}, checkpoint / name)
    return checkpoint


def ranks(folder: Path, *numbers: int) -> Path:
    checkpoint = trainer(folder, *(f"rng_state_{number}.pth" for number in numbers))
    return adapter(checkpoint, described=True)


def uint32(name: str, value: int) -> bytes:
    return gguf_key(name, 4, value.to_bytes(4, "little"))


def split_gguf(file: Path, **values: int) -> Path:
    keys = [uint32(f"split.{key}", value) for key, value in values.items()]
    tensor = gguf_tensor(f"t{values.get('no', 0)}.weight", [8])
    return write_gguf(file, keys, [tensor], data=bytes(32))


def two_renamed(folder: Path) -> Path:
    for number in (0, 1):
        file = split_gguf(folder / f"part{number}.gguf", no=number, count=2)
    return file


LOST: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "no weights": (lambda folder: trainer(folder), ["model.safetensors: missing"]),
    "no weights in a folder of logs": (
        lambda folder: trainer(folder, "runs/events.pt"), ["model.safetensors: missing"],
    ),
    "the weights of FSDP": (lambda folder: trainer(folder, "pytorch_model_fsdp_0/x.pt"), []),
    "a hole in the ranks": (
        lambda folder: ranks(folder, 0, 2, 4),
        ["rng_state_1.pth: missing", "rng_state_3.pth: missing"],
    ),
    "the first rank": (lambda folder: ranks(folder, 1), ["rng_state_0.pth: missing"]),
    "all ranks": (lambda folder: ranks(folder, 0, 1), []),
    "settings of a checkpoint's adapter": (
        lambda folder: adapter(trainer(folder, "rng_state.pth"), described=False),
        ["adapter_config.json: missing"],
    ),
    "settings of an adapter": (
        lambda folder: adapter(folder, described=False), ["adapter_config.json: missing"],
    ),
    "settings of an adapter in torch's format": (
        lambda folder: adapter(folder, "adapter_model.bin", described=False),
        ["adapter_config.json: missing"],
    ),
    "settings of an adapter of another name": (
        lambda folder: adapter(folder, "lora.safetensors", described=False),
        ["adapter_config.json: missing"],
    ),
    "a renamed part": (
        lambda folder: split_gguf(folder / "one.gguf", no=0, count=3),
        ["one.gguf: part 1 of 3, and its name does not lead to the others"],
    ),
    "two renamed parts": (
        two_renamed, ["part1.gguf: part 2 of 2, and its name does not lead to the others"],
    ),
    "a part under the name of another split": (
        lambda folder: split_gguf(folder / "m-00001-of-00002.gguf", no=0, count=3),
        ["m-00001-of-00002.gguf: part 1 of 3, and its name does not lead to the others"],
    ),
    "a complete file with the name of a part": (
        lambda folder: split_gguf(folder / "m-00001-of-00002.gguf"), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_the_lost_file_is_named(tmp_path: Path, kind: str) -> None:
    make, problems = LOST[kind]
    found = inspect_path(make(tmp_path))
    assert [*found.problems] == problems
    assert found.complete == (not problems)
    if problems:
        assert found.advice is None
    if problems and "adapter" in kind:
        assert "adapter" in found.format and "PEFT" in found.remedies[problems[0]]
    if problems and "part" in kind:
        assert "-00001-of-0000" in found.remedies[problems[0]]


def test_the_number_of_ranks_counts_lost_ones(tmp_path: Path) -> None:
    assert inspect_path(ranks(tmp_path, 0, 2)).facts["world_size"] == 3


@pytest.mark.parametrize("values", [{}, {"no": 0, "count": 1}, {"no": 0, "count": 2}])
def test_the_metadata_of_a_gguf_file_decides_if_it_is_a_part(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    file = split_gguf(tmp_path / "m-00001-of-00002.gguf", **values)
    require_readable(file)
    if values.get("count", 1) == 1:
        return require_whole_model(file)
    with pytest.raises(ConfigError, match="part 1 of a model in 2 parts"):
        require_whole_model(file)


def test_the_model_folder_of_a_run_names_the_run(tmp_path: Path) -> None:
    """It has no weights, and nothing in it is lost."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model.parent / "run.json").write_text("{}")
    for judge in (kind_of, inspect_path):
        with pytest.raises(NoCheckpoint, match="a part of a run") as refused:
            judge(model)
        assert str(model.parent) in str(refused.value.hint)


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_around_adapters_names_one(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"a{number}").mkdir()
        adapter(tmp_path / f"a{number}", described=True)
    with pytest.raises(NoCheckpoint) as refused:
        kind_of(tmp_path)
    assert str(refused.value.hint).startswith(f"did you mean {tmp_path / 'a0'}?")
    assert ("(2 models in this folder)" in str(refused.value.hint)) == (count == 2)
