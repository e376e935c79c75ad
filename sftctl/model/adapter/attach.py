"""Put an adapter onto its base, and merge it into the base.

Any adapter that peft can read will do.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftctl.config.existing_adapter import read_settings
from sftctl.errors import CheckpointError, ConfigError
from sftctl.model.adapter.lora import import_peft, quantizable_layers
from sftctl.model.adapter.names import PREFIX, misfit
from sftctl.model.adapter.nf4 import quantize
from sftctl.model.adapter.save import CONFIG_NAME, WEIGHTS_NAME
from sftctl.model.adapter.tensors import tensor_shapes
from sftctl.model.folder.weight_names import Warn
from sftctl.model.load import load_pretrained
from sftctl.model.source import on_stderr

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OTHER_BASE = "an adapter fits only the base that it was trained on"

_PEFT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, re.error)
"""The errors that peft raises if settings, tensors and base do not fit together."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The values of an adapter_config.json."""

    folder: Path
    base: str
    revision: str | None
    settings: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "AdapterFile":
        """Read a folder; ConfigError if it is not a LoRA adapter with safetensors weights."""
        file = folder / CONFIG_NAME
        settings = read_settings(folder)
        base = settings.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f"{file}: names no base", hint="set base_model_name_or_path to its folder or name"
            )
        if not (folder / WEIGHTS_NAME).is_file():
            raise ConfigError(
                f"{folder / WEIGHTS_NAME}: missing", hint="copy or download the adapter again"
            )
        revision = settings.get("revision")
        return cls(folder, base, revision if isinstance(revision, str) else None, settings)


@dataclass(frozen=True, slots=True)
class Attached:
    """A base with an adapter on it."""

    model: "PreTrainedModel"
    wrapper: Any  # peft's PeftModel around the same model
    form: str | None = None  # nf4: the base has been quantized to nf4 and dequantized again

    def merged(self) -> "PreTrainedModel":
        """Add the adapter to the model's weights, in place. Returns the model, which is then a
        plain one.

        Head and embeddings are merged separately: an adapter of one does not change the other. If
        their merged weights are equal, they are tied again. CheckpointError if peft can't merge the
        adapter.
        """
        _untie(self.model)
        try:
            model: PreTrainedModel = self.wrapper.merge_and_unload(safe_merge=True)
        except _PEFT_ERRORS as problem:
            raise CheckpointError(
                f"this adapter can't be merged: {_last_line(problem)}",
                hint="--format adapter writes it as it is",
            ) from problem
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if _can_be_tied(model) and torch.equal(head.weight, embeddings.weight):
            _set_tied(model, True)
            head.weight = embeddings.weight
        return model


def attach(
    adapter: AdapterFile,
    dtype: torch.dtype = torch.float32,
    location: str | None = None,
    warn: Warn = on_stderr,
    form: str | None = None,
) -> Attached:
    """Load the base in `dtype` and put the adapter on it. ConfigError if they do not fit.

    The base is loaded from `location`, or else by its name. With the `form` nf4, its quantized
    layers are dequantized, because the adapter was trained on these values. The adapter's own
    weights are float32. Head and embeddings stay tied if they are tied in the base: peft needs this
    to decide whether an adapter of the embeddings also changes the head.
    """
    model = load_pretrained(location or adapter.base, warn, dtype if form is None else "auto")
    if form is not None:
        quantize(model, quantizable_layers(model), dtype, dequantized=True)
    stored = tensor_shapes(adapter.folder)
    if (wrong := misfit(adapter.settings, stored)) is not None:
        raise _does_not_fit(adapter, *wrong)
    shapes = {name.removeprefix(PREFIX): shape for name, shape in stored.items()}
    _grow(model, shapes)
    peft = import_peft()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `_require_loaded` raises an error for missing names
        try:
            config = _with_targets(peft.PeftConfig.from_pretrained(str(adapter.folder)), shapes)
            wrapper = peft.PeftModel.from_pretrained(model, str(adapter.folder), config=config)
        except _PEFT_ERRORS as problem:
            raise _does_not_fit(adapter, _last_line(problem)) from problem
    _require_loaded(adapter, wrapper)
    return Attached(model, wrapper, form)


def _with_targets(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Complete the settings: if they name no targets, the targets are the layers with tensors.

    Otherwise peft would choose targets by the type of the model. The first values of an adapter do
    not matter, because it is loaded, unless they also change the base.
    """
    if config.init_lora_weights in ("gaussian", "orthogonal", "eva"):
        config.init_lora_weights = True
    if config.target_modules is None and not config.target_parameters:
        layers = {name.partition(".lora_A")[0] for name in shapes if ".lora_A" in name}
        config.target_modules = layers or None
    return config


def _grow(model: "PreTrainedModel", shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Add rows to the base's embeddings if the adapter's embeddings have more rows."""
    rows = model.get_input_embeddings().num_embeddings
    embeddings = id(model.get_input_embeddings().weight)
    names = {
        name
        for name, one in model.named_parameters(remove_duplicate=False)
        if id(one) == embeddings
    }
    for name, shape in shapes.items():
        if name in names and shape[0] != rows:
            model.resize_token_embeddings(shape[0], mean_resizing=False)


def _untie(model: "PreTrainedModel") -> None:
    """Give the head a copy of the weight that it shares with the embeddings. Adapters do not
    change.
    """
    shared = dict[int, list[torch.nn.Module]]()
    for module in model.modules():
        if isinstance(weight := module._parameters.get("weight"), torch.nn.Parameter):
            shared.setdefault(id(weight), []).append(module)
    for modules in shared.values():
        if any(isinstance(module, torch.nn.Embedding) for module in modules):
            for module in modules:
                if isinstance(module, torch.nn.Linear):
                    module.weight = torch.nn.Parameter(module.weight.detach().clone())
    _set_tied(model, False)


def _can_be_tied(model: "PreTrainedModel") -> bool:
    """Whether the head of this model can share the embeddings' weight."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(model._tied_weights_keys) and head.weight.shape == embeddings.weight.shape


def _set_tied(model: "PreTrainedModel", tied: bool) -> None:
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = tied


def _require_loaded(adapter: AdapterFile, wrapper: Any) -> None:
    """ConfigError unless each tensor of the file is in the model, with its values, and no other.

    peft itself only warns about missing tensors, and loads none if all have other names.
    """
    from safetensors.torch import load_file

    stored = load_file(adapter.folder / WEIGHTS_NAME)
    # With the embeddings (the default), peft would add them if the vocabulary was enlarged.
    loaded = import_peft().get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    whole = wrapper.base_model.model.state_dict()
    plain = {PREFIX + name: tensor for name, tensor in whole.items()}
    plain |= {name.replace(".base_layer.", "."): plain[name] for name in [*plain]}
    plain |= loaded  # some tools also write the embeddings
    for what, names in (
        ("its file has no", loaded.keys() - stored.keys()),
        ("the base has no place for", stored.keys() - plain.keys()),
    ):
        if names:
            raise _does_not_fit(adapter, f"{what} {min(names).removeprefix(PREFIX)}")
    for name, tensor in stored.items():
        if not torch.equal(tensor.to(plain[name].dtype), plain[name]):
            raise _does_not_fit(adapter, f"{name.removeprefix(PREFIX)} is not loaded as it is")


def _last_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1].strip()


def _does_not_fit(adapter: AdapterFile, what: str, hint: str = _OTHER_BASE) -> ConfigError:
    return ConfigError(f"{adapter.folder}: does not fit {adapter.base}: {what}", hint=hint)
