"""Weights under two names, or of a type that is not a real number; damaged values."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftctl.data.prepare.prepare import _how_to_make_room
from sftctl.environment import cache_folder
from sftctl.errors import ConfigError
from sftctl.inspection.inspect import inspect_path
from sftctl.model.folder.computable import NOT_FINITE
from sftctl.model.load import load_pretrained
from sftctl.model.minimind import minimind_configuration
from sftctl.model.row_attention import why_rows_mix
from sftctl.model.source import ModelSource, tell_of_code
from tests.toys.foreign import gguf_key, gguf_text, write_gguf
from tests.toys.models import Tensors, toy_base, write_base

NORM, HEAD = "model.norm.weight", "lm_head.weight"
Change = Callable[[Tensors], Tensors]


def prefixed(prefix: str, difference: float, *, lost: str = "") -> Change:
    """All tensors also under a prefix, with other values; and one lost without it."""

    def change(tensors: Tensors) -> Tensors:
        more = {prefix + name: tensor + difference for name, tensor in tensors.items()}
        return {name: one for name, one in tensors.items() if name != lost} | more

    return change


def pickled(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


TWICE: dict[str, tuple[Change, str | None]] = {
    "both, _orig_mod": (prefixed("_orig_mod.", 1), f"{HEAD} is in the files also as _orig_mod."),
    "all but one without it": (
        prefixed("module.", 1, lost=NORM), f"{HEAD} is in the files also as module.{HEAD}",
    ),
    "PEFT's": (prefixed("base_model.model.", 1, lost=HEAD), "is in the files also as base_model."),
    "equal values": (prefixed("_orig_mod.", 0, lost=NORM), None),
}  # fmt: skip


@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("kind", TWICE)
def test_a_weight_under_two_names_has_one_value(
    tmp_path: Path, kind: str, is_pickled: bool
) -> None:
    change, says = TWICE[kind]
    folder = write_base(tmp_path / "m", toy_base(), change)
    if is_pickled:
        pickled(folder, load_file(folder / "model.safetensors"))
    if says is None:
        load_pretrained(str(folder))
        assert inspect_path(folder).problems == []
        return
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert says in refused.value.message and refused.value.message.endswith("with other values")
    [problem] = inspect_path(folder).problems
    assert says in problem


def test_a_weight_of_minimind_under_two_names_has_one_value(tmp_path: Path) -> None:
    weights = {"module.x": torch.ones(2), "x": torch.zeros(2)}
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"x is in the files also as module\.x"):
        minimind_configuration(tmp_path / "x.pth")


@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_weights_are_real_numbers(tmp_path: Path, dtype: torch.dtype, is_pickled: bool) -> None:
    folder = write_base(
        tmp_path / "m", toy_base(), lambda tensors: tensors | {NORM: tensors[NORM].to(dtype)}
    )
    if is_pickled:
        pickled(folder, load_file(folder / "model.safetensors"))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConfigError, match=f"{NORM} has the type {name}: a weight is not a"):
        load_pretrained(str(folder))
    found = inspect_path(folder)
    assert f"{NORM} has the type {name}" in " ".join([*found.notes, *found.problems])
    assert "sftctl train" not in (found.advice or "")


def test_weights_of_another_format_that_are_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_base(tmp_path / "m", toy_base())
    torch.save({NORM: torch.zeros(16)}, folder / "pytorch_model.bin")
    load_pretrained(str(folder))
    says = "the weights are read from model.safetensors; not read: pytorch_model.bin"
    assert capsys.readouterr().err.count(says) == 1
    assert says in inspect_path(folder).notes


def with_config(folder: Path, **values: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def indexed(folder: Path, index: dict[str, object]) -> Path:
    """A folder whose weights are in a file that the index names, and in no other way."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


PART: dict[str, object] = {"weight_map": {NORM: "model-00001-of-00001.safetensors"}}
DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "NaN in config.json": (
        lambda folder: with_config(folder, rms_norm_eps=float("nan")),
        "config.json: rms_norm_eps is NaN, not a number",
    ),
    "an index without metadata": (
        lambda folder: indexed(folder, PART),
        "model.safetensors.index.json: it has no metadata, which transformers needs",
    ),
    "an index that names nothing": (
        lambda folder: indexed(folder, {"weight_map": {}}),
        "model.safetensors.index.json: its weight_map does not name a file for each tensor",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_the_damaged_value_is_named(tmp_path: Path, kind: str) -> None:
    change, says = DAMAGED[kind]
    folder = change(write_base(tmp_path / "m", toy_base()))
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert refused.value.message == f"model {folder}: {says}"
    found = inspect_path(folder)
    assert found.problems and not found.complete


def test_nan_in_a_model_is_not_blamed_on_examples() -> None:
    model = toy_base()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    assert why_rows_mix(model, longest_row=8) == NOT_FINITE


def test_a_model_that_no_row_can_pass_is_refused() -> None:
    model = toy_base()
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(8, 16)
    with pytest.raises(ConfigError, match="the model can't be computed: RuntimeError: ") as refused:
        why_rows_mix(model, longest_row=8)
    assert "config.json" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["OK.GGUF", "noext", "model.bin"])
def test_a_gguf_file_of_another_ending_is_renamed(tmp_path: Path, name: str) -> None:
    file = write_gguf(tmp_path / name, [gguf_key("general.architecture", 8, gguf_text("llama"))])
    move = f"`mv {file} {file.with_suffix('.gguf')}`"
    found = inspect_path(file)
    assert f"train needs the ending .gguf: {move}" in found.notes
    assert "sftctl train" not in (found.advice or "")
    with pytest.raises(ConfigError) as refused:
        ModelSource.of(str(file))
    assert move in str(refused.value.hint)


@pytest.mark.parametrize(("kind", "is_known"), [("llama", True), ("of_nobody", False)])
def test_own_classes_are_promised_only_for_a_known_type(
    tmp_path: Path, kind: str, is_known: bool
) -> None:
    code = {"AutoModelForCausalLM": "modeling_x.X"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": code}))
    said: list[str] = []
    tell_of_code(ModelSource.of(str(tmp_path)), said.append)
    assert ("transformers' own classes are used" in said[0]) == is_known


def test_a_full_cache_names_its_variable_and_not_an_option_of_another_command(
    tmp_path: Path,
) -> None:
    assert "XDG_CACHE_HOME" in _how_to_make_room(cache_folder() / "x")
    assert "--output" in _how_to_make_room(tmp_path / "x")
