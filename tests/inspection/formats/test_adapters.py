"""What inspect-ckpt says of an adapter is what export and train say of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.inspection.inspect import inspect_path
from tests.toys.tools.adapters import save_adapter, save_mlx_adapter

Make = Callable[[Path], Path]
MERGE = "`sftctl export --merge`"


def with_tensors(change: Callable[[torch.Tensor], torch.Tensor], **values: Any) -> Make:
    """An adapter with other values in its tensors, and with these settings."""

    def made(folder: Path) -> Path:
        file = save_adapter(folder, **values) / "adapter_model.safetensors"
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
        return folder

    return made


def with_names(old: str, new: str) -> Make:
    """An adapter whose tensors have other names."""

    def made(folder: Path) -> Path:
        file = save_adapter(folder) / "adapter_model.safetensors"
        save_file({name.replace(old, new, 1): t for name, t in load_file(file).items()}, file)
        return folder

    return made


def without_magnitudes(folder: Path) -> Path:
    file = save_adapter(folder, use_dora=True) / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "magnitude" not in name}, file)
    return folder


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


REFUSED = [
    (with_tensors(torch.Tensor.log), None, None),  # log 1 = 0: this one is good
    (with_tensors(lambda t: t / 0), "values that are not finite numbers", "earlier checkpoint"),
    (with_tensors(same, r=8), "has rank 4, and its settings 8", "belong to different adapters"),
    (with_tensors(same, r=0, use_rslora=True), "r = 0: 0 is too small", "correct this file"),
    (with_tensors(same, use_dora=True), None, None),
    (without_magnitudes, ".lora_magnitude_vector, but use_dora", "belong to different adapters"),
    (with_names("base_model.model.", ""), "not named as in a file of peft", "save it again"),
    (with_names("", "module."), "not named as in a file of peft", "save it again"),
    (with_names("", "_orig_mod."), "not named as in a file of peft", "save it again"),
    (with_names(".weight", ".default.weight"), "that it has in a model", "save it again"),
    (
        with_tensors(lambda t: t.t().contiguous()),
        "has rank 16, and its settings 4",
        "different adapters",
    ),
    (with_tensors(same, modules_to_save=["lm_head"]), "it has no lm_head", "different adapters"),
    (with_tensors(same, trainable_token_indices=[1]), "it has no rows of tokens", "different"),
    (with_tensors(same, layers_to_transform=[1]), "it has model.layers.0.self_attn", "different"),
    (with_tensors(same, exclude_modules=["q_proj"]), "which adapter_config.json leaves", "differe"),
    (with_tensors(same, target_modules=["v_proj"]), "which adapter_config.json leaves", "differen"),
    (with_tensors(same, target_modules="all-linear"), None, None),
    (with_tensors(same, target_modules=".*q_proj"), None, None),
    (with_tensors(same, target_modules=None), None, None),
    (with_tensors(same, layers_to_transform=[0]), None, None),
    (with_tensors(same, lora_alpha=None), "lora_alpha = None: not a number", "correct this file"),
    (with_tensors(lambda t: t[:0]), "2 tensors are empty", "save it again"),
]


@pytest.mark.parametrize(("make", "problem", "hint"), REFUSED)
def test_an_adapter_that_export_refuses_is_not_complete(
    tmp_path: Path, make: Make, problem: str | None, hint: str | None
) -> None:
    found = inspect_path(make(tmp_path))
    assert found.complete == (problem is None)
    assert (MERGE in found.notes[0]) == (problem is None)
    if problem is not None and hint is not None:
        assert problem in found.problems[0] and hint in found.damage_hint
        assert found.advice is None


NOT_MERGED = [
    (lambda f: save_mlx_adapter(f / "a"), "MLX merges it"),
    (with_tensors(same, peft_type="PROMPT_TUNING"), "merge the adapter with the tool"),
    (with_tensors(same, base=""), "set base_model_name_or_path"),
    (with_tensors(same, init_lora_weights="loftq"), "in a way that can't be repeated"),
    (lambda f: save_adapter(f, str(f)), "its base is itself an adapter: merge that first"),
    (with_tensors(same, base="/nowhere/base"), "put the base back"),
]


@pytest.mark.parametrize(("make", "way"), NOT_MERGED)
def test_the_note_names_no_command_that_refuses_the_adapter(
    tmp_path: Path, make: Make, way: str
) -> None:
    found = inspect_path(make(tmp_path))
    assert found.complete
    assert way in found.notes[0] and MERGE not in found.notes[0]
