"""Read the settings of an existing adapter, from which a run continues.

They are in adapter_config.json, a file of peft. An adapter that sftctl can't train is refused. This
module does not load torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sftctl.config.adapter import AdapterConfig
from sftctl.config.adapter_values import nonsense
from sftctl.config.load import Layer
from sftctl.errors import ConfigError
from sftctl.jsonio import loads, read_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_TASK = "CAUSAL_LM"
_KEYS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "modules_to_save": "modules_to_save",
}
RESTRICTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Options that exclude some of the layers in `target_modules`."""
_WITHOUT_EFFECT = {
    "target_modules",  # names of tensors show which layers have an adapter
    *RESTRICTIONS,
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
}
_ACCEPTED: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "task_type": (_TASK,),
    # Other values, such as pissa, also change the base model.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
_PEFT_KEYS = {
    *_KEYS,
    *_WITHOUT_EFFECT,
    *_ACCEPTED,
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "rank_pattern",
    "runtime_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
}
"""The options of LoRA in peft 0.21."""
_OTHER_MODELS = {
    "layer_replication": "repeats layers of its base",
    "alora_invocation_tokens": "is active only after certain tokens",
}
"""Options that change the base model, or how the base model computes."""
_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""The values that peft uses for a missing key."""
_REPEATABLE = (*_ACCEPTED["init_lora_weights"], False, None, "pissa", "olora")
"""Values of init_lora_weights that leave the base as it is, or that peft changes again in the same
way when it loads the adapter."""
_MERGE = "merge the adapter with the tool that made it, and train the merged model"
_OTHER_KEYS = "this can't be changed: remove the key, or start a new adapter with --lora"
_OTHER_TOOL = "merge the adapter with the tool that made it"
_LONGEST_HEADER_BYTES = 1 << 26


def read_settings(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json of a PEFT folder.

    Raises ConfigError if this is not a LoRA adapter of a language model, or if a value is
    impossible.
    """
    file = folder / CONFIG_NAME
    hint = _inside(folder) or (
        f"an adapter is a directory with {CONFIG_NAME} and {WEIGHTS_NAME}; --lora trains a new one"
    )
    settings = read_object(file, ConfigError, hint)
    method, task = settings.get("peft_type"), settings.get("task_type")
    if method != "LORA":
        raise ConfigError(
            f"{file}: peft_type is {method}, but sftctl reads only LORA adapters",
            hint=_OTHER_TOOL,
        )
    if task is not None and task != _TASK:
        raise ConfigError(
            f"{file}: task_type is {task}, but sftctl reads only {_TASK} adapters",
            hint="this adapter is not for a language model",
        )
    for key, what in _OTHER_MODELS.items():
        if settings.get(key):
            raise ConfigError(f"{file}: {key} is set: such an adapter {what}", hint=_OTHER_TOOL)
    if (init := settings.get("init_lora_weights")) not in _REPEATABLE:
        raise ConfigError(
            f"{file}: init_lora_weights is {init}: such an adapter also changes its base, in a way "
            "that can't be repeated",
            hint=f"{_OTHER_TOOL}; if its base is the changed model, set the key to true",
        )
    for key, problem in nonsense(settings):
        raise ConfigError(
            f"{file}: {key} = {settings[key]!r}: {problem}",
            hint="correct the value, or copy or download the adapter again",
        )
    if unknown := [key for key, value in settings.items() if value and key not in _PEFT_KEYS]:
        raise _not_here(file, settings, unknown[0], "is not known here", _OTHER_TOOL)
    return settings


def _inside(folder: Path) -> str | None:
    """A hint if `folder` contains an adapter: the adapter of a run, or a Trainer's last adapter."""
    try:
        files = [*folder.glob(f"final/{CONFIG_NAME}"), *folder.glob(f"checkpoint-*/{CONFIG_NAME}")]
    except OSError:
        return None
    found = [file.parent for file in files if file.parent.name.rpartition("-")[2].isdecimal()]
    last = max(found, key=lambda one: int(one.name.rpartition("-")[2]), default=None)
    inside = folder / "final" if folder / "final" / CONFIG_NAME in files else last
    return None if inside is None else f"did you mean {inside}?"


def restricts(settings: Mapping[str, Any]) -> bool:
    """Whether an adapter excludes some of the layers in `target_modules`."""
    return any(
        settings.get(key) not in (None, "", []) for key in RESTRICTIONS
    )  # 0 is the index of a layer


def layer_of(layers: Iterable[Layer]) -> list[Layer]:
    """The settings of the adapter in `adapter.start`, as a Layer. Other layers override this layer.

    Empty if `adapter.start` is unset. Raises ConfigError if sftctl can't train the adapter.
    """
    given = {key: value for layer in layers for key, value in layer.values.items()}
    start = given.get("adapter.start")
    if not isinstance(start, str):
        return []
    folder = Path(start)
    values = {f"adapter.{key}": value for key, value in _settings_in(folder).items()}
    base = read_settings(folder).get("base_model_name_or_path")
    if isinstance(base, str) and base:
        values["model.name"] = base
    return [Layer(str(folder / CONFIG_NAME), {**values, "adapter.lora": True}, is_file=True)]


def require_agreement(adapter: AdapterConfig) -> None:
    """Raise ConfigError if the adapter that a run starts from was made with other settings.

    The dropout may differ. `modules_to_save` may name more modules.
    """
    if adapter.start is None:
        return
    for key, theirs in _settings_in(Path(adapter.start)).items():
        ours = getattr(adapter, key)
        same = ours == theirs
        if isinstance(theirs, list):
            same = {*(ours or ())} == {*theirs}
        if key == "modules_to_save":
            same = {*(ours or ())} >= {*theirs}
        if key != "dropout" and not same:
            raise ConfigError(
                f"adapter.{key}: {_shown(ours)}, but {adapter.start} was made with "
                f"{_shown(theirs)}",
                hint=_OTHER_KEYS,
            )


def base_doubts(adapter: AdapterConfig, model: str) -> Iterator[str]:
    """Yield a warning if the adapter that a run starts from does not name `model` as its base."""
    if adapter.start is None:
        return
    base = read_settings(Path(adapter.start)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        yield f"{adapter.start} names no base model, so it may not belong to {model}"
    elif base != model and Path(base).absolute() != Path(model).absolute():
        yield (
            f"{adapter.start} names another base model, {base}. The shapes fit {model}, but an "
            "adapter works only with the weights that it was trained on"
        )


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _settings_in(folder: Path) -> dict[str, Any]:
    """The settings of an adapter under sftctl's keys. Raises ConfigError as `read_settings` does,
    and for an option that sftctl can't train."""
    settings = read_settings(folder)
    _require_known(folder / CONFIG_NAME, settings)
    known = {**_DEFAULTS, **settings}
    values = {
        ours: known[theirs] for theirs, ours in _KEYS.items() if known.get(theirs) is not None
    }
    return {**values, "targets": _targets(folder, settings)}


def _require_known(file: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError for an option that changes the computation, if sftctl does not have it."""
    for key, value in settings.items():
        if key in _KEYS or key in _WITHOUT_EFFECT or not value or value in _ACCEPTED.get(key, ()):
            continue
        raise _not_here(file, settings, key, "can't be trained here", _MERGE)


def _not_here(
    file: Path, settings: Mapping[str, Any], key: str, what: str, hint: str
) -> ConfigError:
    version, value = settings.get("peft_version"), settings[key]
    by = f" (written by peft {version})" if isinstance(version, str) else ""
    shown = value if isinstance(value, (str, int, float)) else "…"
    return ConfigError(f"{file}: {key} = {shown}{by} {what}", hint=hint)


def _targets(folder: Path, settings: dict[str, Any]) -> list[str]:
    """The layers with an adapter: short names from adapter_config.json, or else full names."""
    names = sorted({*_adapted_layers(folder / WEIGHTS_NAME)})
    short = settings.get("target_modules")
    if not names:
        raise ConfigError(
            f"{folder / WEIGHTS_NAME}: has no tensor of a LoRA adapter of linear layers",
            hint="copy or download the adapter again",
        )
    if isinstance(short, list) and not restricts(settings):
        found = sorted(end for end in map(str, short) if _is_end_of_any(end, names))
        if not found:
            raise ConfigError(
                f"{folder / CONFIG_NAME}: target_modules = {_shown(short)}: {WEIGHTS_NAME} has no "
                f"such layer, but {names[0]}",
                hint="the two files belong to different adapters: copy or download it again",
            )
        return found
    return names


def _is_end_of_any(end: str, names: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for name in names)


def _adapted_layers(file: Path) -> Iterator[str]:
    """The names of the layers that have an adapter in this file, as the model names them."""
    from sftctl.disk import read_refusals

    damaged = ConfigError(f"{file}: damaged", hint="copy or download the adapter again")
    with (
        read_refusals(file, ConfigError, "copy or download the adapter again"),
        file.open("rb") as stream,
    ):
        length = int.from_bytes(stream.read(8), "little")
        data = stream.read(length) if length <= _LONGEST_HEADER_BYTES else b""
    try:
        header = loads(data)
    except ValueError:
        raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    for name in header:
        place, found, _ = name.partition(".lora_A")
        if found:
            yield place.removeprefix("base_model.model.")
