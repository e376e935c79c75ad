"""LoRA adapters with peft: small matrices that are trained next to a model's frozen weights.

The model is changed in place, and stays a transformers model. Its own weights are frozen. Only the
adapter's parameters, and modules that are saved completely, are trained, in float32.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from sftctl.config.adapter import AdapterConfig
from sftctl.errors import ConfigError
from sftctl.model.adapter.needs import broken_package

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_NAME = "default"  # the name that peft gives to a model's only adapter
EMBEDDINGS, HEAD = "embeddings", "head"
"""In `adapter.modules_to_save`, these names mean the embeddings and the head of any model."""
_ADAPTER = re.compile(rf"\.lora_\w+\.{_NAME}(\.|$)")
"""Finds the parameters of an adapter by their names, such as `q_proj.lora_A.default.weight`."""


def add_adapter(
    model: "PreTrainedModel",
    settings: AdapterConfig,
    seed: int,
    mode: AbstractContextManager[object] | None = None,
) -> None:
    """Add an adapter to a model. Its first weights depend only on `seed` and on the shapes.

    ConfigError if a pattern of `settings` matches nothing. If the model has fake tensors, `mode` is
    their torch mode.
    """
    targets = target_layers(model, settings.targets)
    whole = _modules_named(model, settings.modules_to_save or ())
    config = _lora_config(short_names(model, targets), settings)
    # On the meta device first. Otherwise peft would draw the weights in the dtype of the base.
    import_peft().inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    with mode or nullcontext():
        torch.manual_seed(seed)
        for name in targets:
            _initialize(model.get_submodule(name))
    config.modules_to_save = list(whole) or None
    for parameter in (each for module in _each(whole) for each in module.parameters()):
        parameter.requires_grad_(True)
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _initialize(layer: Any) -> None:
    """Draw the first weights of one layer's adapter, in float32, on the device of the base."""
    device = layer.get_base_layer().weight.device
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                values = torch.empty(parameter.shape, device=device)
                setattr(module, name, torch.nn.Parameter(values))
    layer.reset_lora_parameters(_NAME, True)
    if _NAME in layer.lora_magnitude_vector:  # the norms of DoRA start as the norms of the base
        layer.lora_magnitude_vector[_NAME].update_layer(
            base_layer=layer.get_base_layer(),
            lora_A=layer.lora_A[_NAME].weight,
            lora_B=layer.lora_B[_NAME].weight,
            scaling=layer.scaling[_NAME],
        )


def import_peft() -> Any:
    """Import peft. ConfigError if it can't be imported.

    peft imports bitsandbytes if it is installed, and fails if bitsandbytes is broken. The messages
    of bitsandbytes are hidden.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its messages
    try:
        import peft
    except (ImportError, OSError, RuntimeError) as problem:
        raise broken_package("peft", problem) from problem
    return peft


def has_adapter(model: "PreTrainedModel") -> bool:
    """Whether `add_adapter` changed this model."""
    return hasattr(model, "peft_config")


def lora_config(model: "PreTrainedModel") -> "LoraConfig":
    """peft's settings for the model's adapter."""
    config: LoraConfig = model.peft_config[_NAME]
    return config


def adapter_parameters(model: "PreTrainedModel") -> dict[str, torch.nn.Parameter]:
    """The parameters of a model's adapter by name, without modules that are saved completely."""
    return {name: p for name, p in model.named_parameters() if _ADAPTER.search(name)}


def saved_tensors(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of this model saves, by all their names.

    With an adapter, these are its parameters and the modules that are saved completely. Without an
    adapter, these are all tensors of the model.
    """
    tensors: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if not has_adapter(model):
        return tensors
    modules = _modules_named(model, lora_config(model).modules_to_save or ())
    whole = {id(each) for module in _each(modules) for each in module.parameters()}
    return {
        name: tensor
        for name, tensor in tensors.items()
        # The model's tied weights have several names.
        if _ADAPTER.search(name) or id(tensor) in whole
    }


def _lora_config(targets: list[str], settings: AdapterConfig) -> "LoraConfig":
    config: LoraConfig = import_peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    return config


def target_layers(model: "PreTrainedModel", patterns: Iterable[str] | None) -> list[str]:
    """The names of the linear layers in the model's blocks that get an adapter; None: all of them.

    A pattern is the last part of a name, the end of a name, or a shell pattern for the complete
    name. ConfigError if a pattern matches nothing.
    """
    layers = [name for block in _blocks(model) for name in _linear_layers(model, block)]
    if patterns is None:
        return layers
    chosen = set[str]()
    for pattern in patterns:
        found = {name for name in layers if _matches(name, pattern.strip())}
        if not found:
            existing = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ConfigError(
                f"adapter.targets: {pattern} matches no linear layer of the blocks",
                hint=f"there are {existing}; adapter.modules_to_save trains other modules",
            )
        chosen |= found
    return [name for name in layers if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    return f".{name}".endswith(f".{pattern}") or fnmatchcase(name, pattern)


def _blocks(model: "PreTrainedModel") -> list[str]:
    """The names of the outermost module lists: a language model's decoder layers."""
    lists = [name for name, one in model.named_modules() if isinstance(one, torch.nn.ModuleList)]
    return [name for name in lists if not any(name.startswith(f"{one}.") for one in lists)]


def _linear_layers(model: "PreTrainedModel", block: str) -> list[str]:
    return [
        f"{block}.{name}"
        for name, module in model.get_submodule(block).named_modules()
        if is_linear(module)
    ]


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer, or GPT-2's form of one."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def quantizable_layers(model: "PreTrainedModel", whole: Iterable[str] = ()) -> list[str]:
    """The names of the linear layers in the model's blocks, except adapters and the modules
    `whole`.

    ConfigError if there is no such layer, because nf4 would then change nothing.
    """
    modules = _each(_modules_named(model, whole))
    trained = {id(one) for module in modules for one in module.modules()}
    layers = [
        name
        for block in _blocks(model)
        for name in _linear_layers(model, block)
        if type(layer := model.get_submodule(name)) is torch.nn.Linear
        and id(layer) not in trained
        and not _ADAPTER.search(name)
    ]
    if not layers:
        raise ConfigError(
            "adapter.quantize: the blocks of this model have no linear layers",
            hint="leave it out, or take another model",
        )
    return layers


def short_names(model: "PreTrainedModel", layers: list[str]) -> list[str]:
    """For each layer, the shortest end of its name that no module outside of `layers` has; sorted.

    These are `target_modules` for peft and other tools.
    """
    wanted = {*layers}
    others = [f".{name}" for name, _ in model.named_modules() if name not in wanted]
    is_own: dict[str, bool] = {}
    found = set[str]()
    for layer in layers:
        parts = layer.split(".")
        for start in reversed(range(len(parts))):
            end = ".".join(parts[start:])
            if end not in is_own:
                is_own[end] = not any(other.endswith(f".{end}") for other in others)
            if is_own[end] or start == 0:
                found.add(end)
                break
    return sorted(found)


def _modules_named(
    model: "PreTrainedModel", names: Iterable[str]
) -> dict[str, list[torch.nn.Module]]:
    """The modules whose name is one of `names`, or ends with it. ConfigError if there is none.

    `embeddings` and `head` are found in any model. The keys are the names that peft expects.
    """
    special = {EMBEDDINGS: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    result = dict[str, list[torch.nn.Module]]()
    for wanted in names:
        found = dict[str, list[torch.nn.Module]]()
        for name, module in model.named_modules():
            if f".{name}".endswith(f".{wanted}") or module is special.get(wanted):
                key = name.rpartition(".")[2] if wanted in special else wanted
                found.setdefault(key, []).append(module)
        if not found:
            outside = [name.rpartition(".")[2] for name, _ in _outside_of_blocks(model)]
            raise ConfigError(
                f"adapter.modules_to_save: the model has no module {wanted}",
                hint=f"outside of its blocks are {', '.join(outside)}; or embeddings, head",
            )
        result |= found
    return result


def _each(named: dict[str, list[torch.nn.Module]]) -> list[torch.nn.Module]:
    return [module for modules in named.values() for module in modules]


def _outside_of_blocks(model: "PreTrainedModel") -> list[tuple[str, torch.nn.Module]]:
    blocks = tuple(f"{name}." for name in _blocks(model))
    return [
        (name, module)
        for name, module in model.named_modules()
        if not name.startswith(blocks) and any(True for _ in module.parameters(recurse=False))
    ]


def doubts(model: "PreTrainedModel") -> Iterator[str]:
    """Warnings about a model's adapter: a rank that is too large, experts without an adapter."""
    rank = lora_config(model).r
    sizes = {
        name: min(module.weight.shape)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    if small := [name for name, size in sizes.items() if size < rank]:
        yield (
            f"adapter.rank: {rank} is above the smallest dimension of "
            f"{small[0].rpartition('.')[2]} ({sizes[small[0]]}): a smaller rank trains as much"
        )
    experts = [name for name, p in model.named_parameters() if p.ndim > 2]
    if experts:
        yield (
            f"the experts get no adapter: {experts[0]} and similar tensors hold all experts, and "
            "are not linear layers"
        )
