"""Which layers an adapter_config.json gives an adapter, as peft reads it."""

from collections.abc import Iterable, Mapping
from typing import Any

from sftctl.config.existing_adapter import CONFIG_NAME, RESTRICTIONS
from sftctl.model.adapter.lora import import_peft
from sftctl.model.adapter.names import PREFIX

_ALL = "all-linear"


def adapted_layers(names: Iterable[str]) -> set[str]:
    """The layers that have matrices in a file with these tensors, by their names in the model."""
    return {
        name.removeprefix(PREFIX).partition(".lora_A")[0] for name in names if ".lora_A." in name
    }


def declared_layers(layers: Iterable[str], settings: Mapping[str, Any]) -> set[str]:
    """The `layers` that get an adapter. ValueError, TypeError or re.error for invalid settings.

    For all-linear, all layers are targets: give no other layers.
    """
    peft, layers = import_peft(), [*layers]
    keys = ("target_modules", *RESTRICTIONS)
    values = {key: settings.get(key) for key in keys}
    if values["target_modules"] in (None, _ALL):
        values["target_modules"] = layers
    config = peft.LoraConfig(**values)
    exists = peft.tuners.tuners_utils.check_target_module_exists
    return {name for name in layers if exists(config, name)}


def undeclared(names: Iterable[str], settings: Mapping[str, Any]) -> str | None:
    """How a file has more layers than its settings, without a look at the base. None: it has not.

    Matrices of parameters, such as those of experts, are not checked.
    """
    found = adapted_layers(names)
    if settings.get("target_parameters") or not found:
        return None
    wrong = sorted(found - declared_layers(found, settings))
    return left_out(wrong[0]) if wrong else None


def left_out(layer: str) -> str:
    """The words for a layer in the file that the settings do not give an adapter."""
    return f"it has {layer}, which {CONFIG_NAME} leaves out"
