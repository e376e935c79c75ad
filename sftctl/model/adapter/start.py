"""Continue an existing adapter: its tensors become the first weights of the run's adapter."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sftctl import jsonio
from sftctl.config.existing_adapter import read_settings
from sftctl.errors import ConfigError
from sftctl.model.adapter.declared import adapted_layers, declared_layers, left_out
from sftctl.model.adapter.lora import is_linear, saved_tensors
from sftctl.model.adapter.names import PREFIX, TWO_FILES, misfit
from sftctl.model.adapter.save import CONFIG_NAME, WEIGHTS_NAME, peft_name
from sftctl.model.adapter.tensors import tensor_shapes
from sftctl.model.tokenizer.new_tokens import new_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_OTHER_BASE = "an adapter fits only the base that it was trained on: --model names it"
_TWO_FILES = "the two files belong to different adapters: copy or download it again"
_MORE_ROWS = "tokens were added: name them with --set model.new_tokens=…"


def require_fit(model: "PreTrainedModel", folder: Path, base: str) -> None:
    """ConfigError unless the adapter in `folder` has the same tensors as this model's adapter."""
    shapes, settings = tensor_shapes(folder), read_settings(folder)
    if (wrong := misfit(settings, shapes)) is not None:
        raise _does_not_fit(folder, base, *wrong)
    _require_declared(model, folder, base, shapes)
    ours = {peft_name(name): tensor for name, tensor in saved_tensors(model).items()}
    for name, tensor in ours.items():
        if name not in shapes and ".lora_" in name:
            raise _does_not_fit(folder, base, f"it has no {name.removeprefix(PREFIX)}")
        if name in shapes and shapes[name] != (*tensor.shape,):
            what = f"{name.removeprefix(PREFIX)} is {_shape(shapes[name])}, not "
            hint = _OTHER_BASE if ".lora_" in name else _MORE_ROWS
            raise _does_not_fit(folder, base, what + _shape((*tensor.shape,)), hint)
    plain = {PREFIX + name for name in model.state_dict()}
    plain |= {name.replace(".base_layer.", ".") for name in plain}
    if unknown := sorted(shapes.keys() - ours.keys() - plain):
        what = f"the model has no place for its {unknown[0].removeprefix(PREFIX)}"
        raise _does_not_fit(folder, base, what)


def _require_declared(
    model: "PreTrainedModel", folder: Path, base: str, names: Collection[str]
) -> None:
    """ConfigError unless the layers with an adapter are those that adapter_config.json declares."""
    settings = read_settings(folder)
    if settings.get("target_modules") is None:
        return
    layers = _could_be_adapted(model)
    found = adapted_layers(names) & {*layers}  # for others, the model has no place
    try:
        declared = declared_layers(layers, settings)
    except (ValueError, TypeError, re.error) as problem:
        raise _does_not_fit(folder, base, str(problem).strip().splitlines()[-1]) from problem
    if wrong := sorted(found - declared):
        raise _does_not_fit(folder, base, left_out(wrong[0]), TWO_FILES)
    whole = tuple(f".{name}" for name in settings.get("modules_to_save") or ())
    if lost := sorted(name for name in declared - found if not f".{name}".endswith(whole)):
        what = f"it has no {lost[0]}, which {CONFIG_NAME} names"
        raise _does_not_fit(folder, base, what, TWO_FILES)


def _could_be_adapted(model: "PreTrainedModel") -> list[str]:
    """The names of a model's linear layers, without the head. Adapters are not layers."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if (hasattr(module, "base_layer") or is_linear(module))
        and module is not head
        and not re.search(r"\.(lora_\w+|base_layer|original_module|modules_to_save)(\.|$)", name)
    ]


def require_same_tokens(tokenizer: "ChatTokenizer", tokens: Sequence[str], folder: Path) -> None:
    """ConfigError if the tokenizer next to an adapter has another token with the id of a new token.

    The adapter's row for that other token would become the row of the new token. An adapter without
    a tokenizer is accepted, and also an id that its tokenizer does not have.
    """
    file = folder / "tokenizer.json"
    if not tokens or not file.is_file():
        return
    added = jsonio.read_object(file, ConfigError).get("added_tokens")
    named = [one for one in added or () if isinstance(one, dict)]
    theirs = {one.get("id"): one.get("content") for one in named}
    for token, index in zip(tokens, new_ids(tokenizer, tokens), strict=True):
        if (other := theirs.get(index, token)) != token:
            raise ConfigError(
                f"model.new_tokens: token {index} is {other} in {folder}, not {token}",
                hint=f"name its tokens first, in its order: model.new_tokens={other},…",
            )


@torch.no_grad()
def load_start(model: "PreTrainedModel", folder: Path, base: str) -> None:
    """Copy the tensors of the adapter in `folder` into the model's adapter.

    Modules that are saved completely are copied too. Raises the ConfigErrors of `require_fit`. Also
    ConfigError if a frozen weight has another value in the adapter, or if the adapter has two
    different values for a tied weight.
    """
    from safetensors.torch import load_file

    require_fit(model, folder, base)
    stored = {name.removeprefix(PREFIX): t for name, t in load_file(folder / WEIGHTS_NAME).items()}
    ours = {
        peft_name(name).removeprefix(PREFIX): tensor
        for name, tensor in saved_tensors(model).items()
    }
    _require_tied(ours, stored, folder, base)
    for name, tensor in ours.items():
        if name in stored:
            tensor.copy_(stored[name])
    for name, tensor in model.state_dict().items():  # some tools write frozen embeddings too
        if name in stored and name not in ours:
            same = stored[name].shape == tensor.shape
            if not same or not torch.equal(stored[name].to(tensor.dtype), tensor):
                raise _does_not_fit(folder, base, f"its {name} is not that of the base", _MORE_ROWS)


def _require_tied(
    ours: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], folder: Path, base: str
) -> None:
    """ConfigError if the adapter has different values for a tied weight, or lacks one of them."""
    names = dict[int, list[str]]()
    for name, tensor in ours.items():
        names.setdefault(id(tensor), []).append(name)
    for first, *others in names.values():
        for other in others:
            one, two = stored.get(first), stored.get(other)
            if one is None and two is None:
                continue
            if one is None or two is None or not torch.equal(one, two):
                raise ConfigError(
                    f"{folder}: has different {first} and {other}, which are one weight in {base}",
                    hint="merge it with the tool that made it, and train the merged model",
                )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _does_not_fit(folder: Path, base: str, what: str, hint: str = _OTHER_BASE) -> ConfigError:
    return ConfigError(f"{folder}: does not fit {base}: {what}", hint=hint)
