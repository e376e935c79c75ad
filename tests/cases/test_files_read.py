"""Which files of a model's folder are read, and weights that no model can have."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.errors import ConfigError
from sftctl.inspection.inspect import inspect_path
from sftctl.model.folder.read_files import unread_files
from sftctl.model.load import load_pretrained
from tests.toys.models import toy_base, write_base

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def sharded(folder: Path) -> Path:
    """A model in two files with an index."""
    write_base(folder, toy_base())
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: FIRST if name in names[::2] else SECOND for name in names}
    for file in (FIRST, SECOND):
        part = {name: tensors[name] for name in names if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def put(folder: Path, file: str, name: str, value: torch.Tensor) -> None:
    tensors = load_file(folder / file)
    save_file(tensors | {name: value}, folder / file, metadata={"format": "pt"})


def also_in_the_other(folder: Path, change: float) -> None:
    for file, other in ((FIRST, SECOND), (SECOND, FIRST)):
        tensors = load_file(folder / file)
        if NORM in tensors:
            return put(folder, other, NORM, tensors[NORM] + change)


def in_torch_file(folder: Path, name: str, dtype: torch.dtype) -> None:
    """All weights in one file of `torch.save`, one of them in another type."""
    renamed(folder, "x.safetensors")
    tensors = load_file(folder / "x.safetensors")
    (folder / "x.safetensors").unlink()
    torch.save(tensors | {name: tensors[name].to(dtype)}, folder / "pytorch_model.bin")


def in_torch_files(folder: Path, change: float) -> None:
    """The same two parts as files of `torch.save`, with one tensor in both."""
    also_in_the_other(folder, change)
    index = (folder / INDEX).read_text()
    for file in (FIRST, SECOND):
        other = file.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        torch.save(load_file(folder / file), folder / other)
        index = index.replace(file, other)
        (folder / file).unlink()
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin.index.json").write_text(index)


def renamed(folder: Path, name: str) -> None:
    single(folder)
    (folder / "model.safetensors").rename(folder / name)
    for file in (FIRST, SECOND, INDEX):
        (folder / file).unlink()


def nested(folder: Path) -> None:
    """The weights in a torch file, below a key."""
    renamed(folder, "x.safetensors")
    torch.save({"model": load_file(folder / "x.safetensors")}, folder / "pytorch_model.bin")
    (folder / "x.safetensors").unlink()


def linked(folder: Path) -> None:
    renamed(folder, "x.safetensors")
    (folder / "x.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


def script(folder: Path) -> None:
    renamed(folder, "x.safetensors")
    (folder / "x.safetensors").unlink()
    module = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(module, str(folder / "pytorch_model.bin"))


def with_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor in two files": (
        lambda folder: also_in_the_other(folder, 1.0),
        f"{NORM} is in {FIRST} and, with other values, in {SECOND}",
    ),
    "a tensor in two files of torch": (
        lambda folder: in_torch_files(folder, 1.0),
        f"{NORM} is in pytorch_model-00001-of-00002.bin and, with other values, in "
        "pytorch_model-00002-of-00002.bin",
    ),
    "a tensor of int64": (
        lambda folder: put(folder, FIRST, "lm_head.weight", torch.ones(64, 16, dtype=torch.int64)),
        "lm_head.weight has the type int64: a weight is not an integer",
    ),
    "a complex tensor": (
        lambda folder: put(
            folder, FIRST, "lm_head.weight", torch.ones(64, 16, dtype=torch.complex64)
        ),
        "lm_head.weight has the type complex64: a weight is not a complex number",
    ),
    "a tensor of int64 in a file of torch": (
        lambda folder: in_torch_file(folder, "lm_head.weight", torch.int64),
        "lm_head.weight has the type int64: a weight is not an integer",
    ),
    "a matrix of uint8 in a file of torch": (
        lambda folder: in_torch_file(folder, "lm_head.weight", torch.uint8),
        "its weights are of type uint8, which means nothing without the scales of a quantizer",
    ),
    "no layers": (
        lambda folder: with_config(folder, num_hidden_layers=0),
        "config.json: num_hidden_layers is 0, not a size",
    ),
    "a negative number of layers": (
        lambda folder: with_config(folder, num_hidden_layers=-1),
        "config.json: num_hidden_layers is -1, not a size",
    ),
}


MISFITS: dict[str, Callable[[Path], object]] = {
    "biases that the files lack": lambda folder: with_config(folder, attention_bias=True),
    "another number of heads": lambda folder: with_config(folder, num_key_value_heads=2),
    "qwen2, which has biases": lambda folder: with_config(folder, model_type="qwen2"),
    "a padding id beyond the vocabulary": lambda folder: with_config(folder, pad_token_id=64),
    "a type that torch lacks": lambda folder: with_config(folder, dtype="bf16"),
    "no number where one is due": lambda folder: with_config(folder, rms_norm_eps=None),
    "a text as rope_theta": lambda folder: with_config(
        folder, rope_parameters={"rope_type": "default", "rope_theta": "10000"}
    ),
    "a name that transformers does not read": lambda folder: renamed(
        folder, "consolidated.safetensors"
    ),
    "a variant": lambda folder: renamed(folder, "model.fp16.safetensors"),
    "the weights below a key": nested,
    "an index that is null": lambda folder: (folder / INDEX).write_text('{"weight_map": null}'),
    "an index that is empty": lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'),
    "a program of TorchScript": script,
    "a link to nothing": linked,
    "a file of the index that is lost": lambda folder: (folder / SECOND).unlink(),
}


NAMED = {
    "a link to nothing": "model.safetensors is a link to a file that is not there",
    "a padding id beyond the vocabulary": "config.json: pad_token_id is 64, but vocab_size is 64",
    "a type that torch lacks": "config.json: dtype is 'bf16', which torch does not know",
    "a text as rope_theta": "config.json: rope_theta is '10000', not a number",
    "an index that is empty": f"{INDEX}: its weight_map does not name a file for each tensor",
    "a program of TorchScript": "its weights are a TorchScript program, which is never run",
    "an index that is null": f"{INDEX}: its weight_map does not name a file for each tensor",
}


@pytest.mark.parametrize("kind", NAMED)
def test_the_error_names_the_key_and_not_a_text_of_python(tmp_path: Path, kind: str) -> None:
    MISFITS[kind](folder := sharded(tmp_path / "m"))
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert refused.value.message == f"model {folder}: {NAMED[kind]}"
    assert "download" not in str(refused.value.hint) or "this file" in str(refused.value.hint)


@pytest.mark.parametrize("kind", MISFITS)
def test_a_folder_that_train_refuses_is_not_complete(tmp_path: Path, kind: str) -> None:
    MISFITS[kind](folder := sharded(tmp_path / "m"))
    with pytest.raises(ConfigError):
        load_pretrained(str(folder))
    found = inspect_path(folder)
    assert found.problems and found.damage_hint and not found.complete and found.advice is None
    for line in found.damage:  # the folder, or a file in it, and what is wrong
        name, colon, _ = line.removeprefix(str(folder)).partition(": ")
        assert colon and " " not in name


def absolute(folder: Path) -> None:
    index = folder / INDEX
    index.write_text(index.read_text().replace('"model-0000', f'"{folder}/model-0000'))


def without_parts(folder: Path) -> None:
    single(folder)
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()


LOADED: dict[str, Callable[[Path], None]] = {
    "an index of before": without_parts,
    "absolute paths": absolute,
    "a tensor in two files of torch with the same values": lambda folder: in_torch_files(folder, 0),
    "a class that nobody has": lambda folder: with_config(folder, architectures=["Foo"]),
    "another class of the family": lambda folder: with_config(
        folder, architectures=["LlamaForSequenceClassification"]
    ),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_folder_that_train_takes_is_complete(tmp_path: Path, kind: str) -> None:
    LOADED[kind](folder := sharded(tmp_path / "m"))
    load_pretrained(str(folder))
    found = inspect_path(folder)
    assert (found.problems, found.complete) == ([], True)
    assert "--tokenizer" in found.notes[-1]  # its only lack


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_both_refuse(tmp_path: Path, change: Callable[[Path], None], says: str) -> None:
    change(folder := sharded(tmp_path / "m"))
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    found = inspect_path(folder)
    assert refused.value.message == f"model {folder}: {says}" and refused.value.hint
    assert says in [*found.problems, *found.notes]
    assert "sftctl train" not in (found.advice or "")


def beside(folder: Path) -> None:
    save_file(load_file(folder / FIRST), folder / "model-00001-of-00002 (1).safetensors")


def single(folder: Path) -> None:
    tensors = load_file(folder / FIRST) | load_file(folder / SECOND)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


UNREAD: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "one file beside an index": (
        single,
        f"the weights are read from model.safetensors; not read: {FIRST}, {SECOND}",
    ),
    "a copy of a part": (
        beside,
        f"the weights are read from the files that {INDEX} names; not read: "
        "model-00001-of-00002 (1).safetensors",
    ),
    "a tensor twice with the same values": (lambda folder: also_in_the_other(folder, 0.0), None),
    "nothing": (lambda folder: None, None),
}


@pytest.mark.parametrize(("change", "says"), UNREAD.values(), ids=UNREAD)
def test_both_say_which_files_are_not_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    says: str | None,
) -> None:
    change(folder := sharded(tmp_path / "m"))
    load_pretrained(str(folder))
    warned = capsys.readouterr().err
    found = inspect_path(folder)
    assert found.problems == []
    assert (unread_files(folder), says in found.notes) == (says, says is not None)
    assert (f"model {folder}: {says}" in warned) == (says is not None)
