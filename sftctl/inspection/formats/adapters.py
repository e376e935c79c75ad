"""Adapters in peft's format, from any tool, and adapters of MLX: their kind, base, rank
and step.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sftctl.config.adapter_values import nonsense
from sftctl.config.existing_adapter import CONFIG_NAME, WEIGHTS_NAME, read_settings
from sftctl.errors import ConfigError
from sftctl.inspection.formats.files import Files, folder_of
from sftctl.inspection.inspection import Tensors
from sftctl.inspection.pickles.values import table
from sftctl.model.adapter.names import TWO_FILES, misfit
from sftctl.model.adapter.needs import is_adapter_folder
from sftctl.model.folder.config_edits import EMPTY_TENSORS
from sftctl.model.folder.read_files import files_read
from sftctl.runs.final import CARD_NAME

_LONGEST_CARD = 1 << 18
_OURS = "fine-tuned on conversations by sftctl"
_STEPS = re.compile(r"^\| steps \| ([\d,]+) of ", re.MULTILINE)
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---", re.DOTALL)
# Tag in the model card -> tool; the first match counts, because other tools add TRL's tag too.
_TOOLS = {
    "llama-factory": "LLaMA-Factory", "unsloth": "Unsloth", "axolotl": "axolotl", "trl": "TRL",
}  # fmt: skip

_IN_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save)\b")
_PEFTS_PREFIX = re.compile(r"(?<=^model\.)base_model\.model\.")
_PEFTS_ADAPTER = re.compile(r"(\.lora_\w+)\.default(?=\.|$)")  # the adapter's name in a model
_MAGNITUDE = re.compile(r"(\.lora_magnitude_vector)\.weight$")


def plain_name(name: str) -> str:
    """One name for a tensor of an adapter, which has other names in peft's files than in a model.

    Both `model.base_model.model.x.lora_A.weight` and `model.x.lora_A.default.weight` become
    `model.x.lora_A.weight`. Other names do not change.
    """
    plain = _PEFTS_ADAPTER.sub(r"\1", _PEFTS_PREFIX.sub("", name))
    return _MAGNITUDE.sub(r"\1", plain)


def adapter_kind(adapter: Mapping[str, Any], card: str = "") -> str:
    """The kind, such as `PEFT adapter directory (LORA)`. If known, the tool replaces PEFT."""
    base = str(adapter.get("base_model_name_or_path", ""))
    if is_mlx_adapter(adapter):
        return f"MLX adapter directory ({adapter.get('fine_tune_type', 'lora')})"
    kind = f" ({adapter['peft_type']})" if "peft_type" in adapter else ""
    is_unsloth = base.startswith("unsloth/") or any("unsloth" in str(key) for key in adapter)
    mapping = table(adapter.get("auto_mapping"))
    is_unsloth = is_unsloth or bool(mapping.get("unsloth_fixed"))
    tool = "Unsloth" if is_unsloth else _tool_in(card) or "PEFT"
    return f"{tool} adapter directory{kind}"


def kind_without_settings(files: Files, tensors: Tensors) -> str | None:
    """The kind of a folder that has the weights of an adapter without their settings; else None.

    `files` gets the problem. A model's own weights in the folder are judged as a model.
    """
    if files_read(files.path) or CONFIG_NAME in files.sizes:
        return None
    is_named = any(Path(name).stem == Path(WEIGHTS_NAME).stem for name in files.sizes)
    if not is_named and not (tensors and all(map(_IN_ADAPTER.search, tensors))):
        return None
    problem = f"{CONFIG_NAME}: missing"
    files.problems.append(problem)
    files.remedies[problem] = (
        "these are an adapter's weights; PEFT writes the file next to them: copy or download it too"
    )
    return "PEFT adapter directory"


def _tool_in(card: str) -> str | None:
    """The tool that the tags of a model card name; None if they name none."""
    match = _FRONT_MATTER.match(card)
    tags = set(re.split(r"[^\w:./-]+", match[1])) if match else set()
    return next((name for tag, name in _TOOLS.items() if tag in tags), None)


def judge_adapter(
    files: Files, adapter: Mapping[str, Any], tensors: Tensors
) -> tuple[list[str], str]:
    """The problems of an adapter, and a note: its base, rank and targets, and what to do next.

    The checks are the checks of `sftctl export --merge` that do not need the base. `files.remedies`
    gets a remedy for each problem. If nothing else is wrong, torch is loaded to look for NaNs.
    """
    note, problems = _description(adapter), unpaired(tensors)
    if is_mlx_adapter(adapter):
        return problems, f"{note}: MLX merges it (mlx_lm.fuse)"
    for key, problem in nonsense(adapter):
        problems.append(f"{CONFIG_NAME}: {key} = {adapter[key]!r}: {problem}")
    if problems or files.problems or not tensors:
        return problems, note
    try:
        read_settings(files.path)
    except ConfigError as error:
        reason = error.message.removeprefix(f"{files.path}/")
        return [], f"{note}: {reason}; {error.hint}"
    if (wrong := _misfit(adapter, tensors)) is not None:
        problem = f"{WEIGHTS_NAME}: {wrong[0]}"
        files.remedies[problem] = wrong[1]
        return [problem], note
    if WEIGHTS_NAME not in files.sizes:
        return [], f"{note}: sftctl takes its weights only as {WEIGHTS_NAME}"
    try:
        _require_declared(files, adapter)
    except ConfigError as error:
        problem = error.message.removeprefix(f"{files.path}/")
        files.remedies[problem] = error.hint or ""
        return [problem], note
    return [], f"{note}: {_way_to_a_model(adapter)}"


def _way_to_a_model(adapter: Mapping[str, Any]) -> str:
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return "to merge it, set base_model_name_or_path to its folder or name"
    is_path = base.startswith((".", "/", "~")) or base.count("/") > 1
    if is_path and not Path(base).exists():
        return "to merge it, put the base back, or set base_model_name_or_path to where it is"
    if is_adapter_folder(Path(base)):
        return "its base is itself an adapter: merge that first"
    return "`sftctl export --merge` makes a model of it and its base"


def _misfit(adapter: Mapping[str, Any], tensors: Tensors) -> tuple[str, str] | None:
    """How the tensors contradict the settings, and what to do; None if they do not."""
    shapes = {name.removeprefix("model."): (*one.shape,) for name, one in tensors.items()}
    if (wrong := misfit(adapter, shapes)) is not None:
        return wrong
    layers = [name.partition(".lora_A")[0] for name in shapes if ".lora_A" in name]
    normed = {name.partition(".lora_magnitude_vector")[0] for name in shapes}
    lost = [layer for layer in layers if layer not in normed]
    if adapter.get("use_dora") is True and lost:
        return f"no {lost[0]}.lora_magnitude_vector, but use_dora is set", TWO_FILES
    return None


def _require_declared(files: Files, adapter: Mapping[str, Any]) -> None:
    """ConfigError if a value is not finite, or if the settings leave out a layer of the file.

    Reads all tensors.
    """
    from sftctl.model.adapter.declared import undeclared
    from sftctl.model.adapter.tensors import tensor_shapes

    if (what := undeclared(tensor_shapes(files.path), adapter)) is not None:
        raise ConfigError(f"{WEIGHTS_NAME}: {what}", TWO_FILES)


def is_mlx_adapter(adapter: Mapping[str, Any]) -> bool:
    """Whether MLX wrote this adapter_config.json."""
    return any(key in adapter for key in ("fine_tune_type", "lora_parameters", "lora_layers"))


def _description(adapter: Mapping[str, Any]) -> str:
    """An adapter's rank, targets and base."""
    base = adapter.get("base_model_name_or_path") or adapter.get("model") or "an unnamed base"
    settings = {**table(adapter.get("lora_parameters")), **adapter}  # MLX nests its settings
    rank = settings.get("r", settings.get("rank"))
    shape = f" of rank {rank}" if isinstance(rank, int) else ""
    if variants := [name for key, name in _VARIANTS.items() if settings.get(key) is True]:
        shape += f" ({', '.join(variants)})"
    targets = [name for key in _TARGETS for name in _names(settings.get(key))]
    if targets:
        shape += f" on {', '.join(sorted(targets))}"
    if whole := _names(settings.get("modules_to_save")):
        shape += f", with {', '.join(sorted(whole))} saved whole"
    return f"an adapter{shape}, for {base}"


def unpaired(tensors: Tensors) -> list[str]:
    """[problem] if a matrix of a LoRA is empty, or if A or B of a pair is missing; else []."""
    if empty := sorted(name for name, one in tensors.items() if 0 in one.shape):
        file = next((part.file.name for part in tensors[empty[0]].parts), "the file")
        first = empty[0].removeprefix("model.")
        tensors_are = "1 tensor is" if len(empty) == 1 else f"{len(empty)} tensors are"
        return [f"{file}: {tensors_are} {EMPTY_TENSORS}: {first}"]
    halves = {other: one for name, one in tensors.items() if (other := _other_half(name))}
    lost = sorted(halves.keys() - tensors.keys())
    if not lost:
        return []
    file = next((part.file.name for part in halves[lost[0]].parts), "adapter_model.safetensors")
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    name = lost[0].removeprefix("model.")
    return [f"{file}: half of the adapter's matrices are missing: {name}{more}"]


def _other_half(name: str) -> str | None:
    """The name of the matrix B for a matrix A, and the reverse. None for other tensors."""
    match = _HALF.search(name)
    if match is None:
        return None
    return f"{name[: match.start(2)]}{_OTHER[match[2]]}{name[match.end(2) :]}"


_HALF = re.compile(r"(\.lora_(?:embedding_)?)([ABab])(?=\.|$)")
_OTHER = {"A": "B", "B": "A", "a": "b", "b": "a"}
_TARGETS = ("target_modules", "target_parameters")
_VARIANTS = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}


def _names(value: object) -> list[str]:
    """The value as a list of names. A pattern counts as one name."""
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, list) else []


def card_of(files: Files) -> str:
    """The text of the folder's model card; "" if there is none."""
    size = files.sizes.get(CARD_NAME)
    if size is None or size > _LONGEST_CARD:
        return ""
    with suppress(OSError):
        return (folder_of(files.path) / CARD_NAME).read_text("utf-8", errors="replace")
    return ""


def adapter_facts(adapter: Mapping[str, Any], card: str) -> dict[str, Any]:
    """The facts that an adapter's settings and card give. It has no state of a trainer."""
    return {"config": {"adapter": dict(adapter)}, "step": _step_in(card)}


def _step_in(card: str) -> int | None:
    """The number of steps in a card that sftctl wrote; None for any other card."""
    match = _STEPS.search(card) if _OURS in card else None
    return int(match[1].replace(",", "")) if match else None
