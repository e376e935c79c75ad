"""The names of a model's weights: known prefixes that wrappers add, and names that do not fit.

`train` and `inspect-ckpt` follow the same rules. Loads neither torch nor transformers.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftctl.errors import ConfigError
from sftctl.model.folder.config_edits import edit_of_layers, edit_of_shapes
from sftctl.words import counted

Warn = Callable[[str], None]

_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_ANY_WRAPPER = rf"(?:(?:{'|'.join(_WRAPPERS)})\.)+"
RENAMES = {
    rf"^{_ANY_WRAPPER}": "",  # DDP, torch.compile, FSDP, activation checkpointing
    rf"\.{_ANY_WRAPPER}": ".",
    # Applied twice, because a block and a module in it may both be wrapped.
    rf"(?:\.){_ANY_WRAPPER}": ".",
    r"^base_model\.model\.": "",  # PEFT
    r"^model\.language_model\.": "model.",  # the text part of a vision-language model
    r"^language_model\.": "",
}
"""Regular expressions for known prefixes -> their replacements. Each is applied once, in this
order.
"""
_KNOWN = (*_WRAPPERS, "base_model.model", "language_model")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b")
_SCALES = re.compile(
    r"(scale|scales|scale_inv|zeros|qweight|absmax|quant_map|g_idx)$|\.quant_state\."
)
_KEYS_ABOVE = ("state_dict", "model", "model_state_dict", "module")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Names:
    """How the tensors in the files fit the model that the configuration describes."""

    missing: Collection[str] = ()  # only in the model
    unexpected: Collection[str] = ()  # only in the files
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]] = field(
        default=()
    )  # (name, shape in the files, shape in the model)

    @property
    def is_loaded(self) -> bool:
        """Whether every weight of the model comes from the files."""
        return not self.missing and not self.mismatched

    @property
    def has_prefixes(self) -> bool:
        """Whether names in the files have a known prefix that the model does not have."""
        return any(plain_name(name) != name for name in self.unexpected)

    @property
    def is_renamed(self) -> bool:
        """Whether weights are missing, and names in the files have a known prefix."""
        return bool(self.missing) and self.has_prefixes

    def require(self, where: str, warn: Warn) -> None:
        """ConfigError if a weight is missing; a warning about tensors that are not used."""
        if problem := self.problem():
            raise ConfigError(f"{where}: {problem}", hint=self.hint())
        if self.unexpected:
            count = counted(len(self.unexpected), "tensor")
            warn(f"{where}: {count} in the files not used: {examples(self.unexpected)}")

    def problem(self) -> str | None:
        """What is wrong, as a message; None if every weight of the model is in the files."""
        if any(map(_ADAPTER.search, self.unexpected)):
            return f"holds an adapter that is not merged: {examples(self.unexpected)}"
        scales = [name for name in self.unexpected if _SCALES.search(name)]
        if scales:
            return f"its weights are quantized, and nothing reads their scales: {examples(scales)}"
        parts = []
        if self.missing:
            verb = "is" if len(self.missing) == 1 else "are"
            count = counted(len(self.missing), "tensor")
            parts.append(f"{count} of the model {verb} not in the files: {examples(self.missing)}")
            if self.unexpected:
                others = counted(len(self.unexpected), "other tensor")
                parts.append(f"the files have {others}: {examples(self.unexpected)}")
        if self.mismatched:
            wrong = [
                f"{name} is {_shape(there)}, not {_shape(here)}"
                for name, there, here in sorted(self.mismatched)
            ]
            count = counted(len(wrong), "tensor")
            parts.append(f"{count} of another shape than config.json says: {examples(wrong)}")
        return "; ".join(parts) or None

    def hint(self) -> str:
        """What to do about `problem()`."""
        if len(self.unexpected) == 1 and (key := next(iter(self.unexpected))) in _KEYS_ABOVE:
            return f"the weights are below the key {key!r} of the file: save what is there alone"
        if any(map(_ADAPTER.search, self.unexpected)):
            return "merge it first: `model.merge_and_unload().save_pretrained(DIR)` in PEFT"
        if any(map(_SCALES.search, self.unexpected)):
            return "take the model that it was quantized from, in float32, bfloat16 or float16"
        if {*self.missing} == {"lm_head.weight"} and not self.mismatched:
            return (
                'set "tie_word_embeddings": true in config.json if the head is the embedding; '
                "else copy or download the weights again"
            )
        if prefix := self._other_prefix():
            return f"each name in the files begins with {prefix!r}: save the weights without it"
        if self.mismatched and not self.missing:
            return edit_of_shapes(self.mismatched)
        if not self.mismatched and not self.unexpected and (edit := edit_of_layers(self.missing)):
            return edit
        return "copy or download the model again; its config.json may belong to another model"

    def _other_prefix(self) -> str | None:
        """A prefix that turns each missing name into a name of the files; None if there is none."""
        missing = sorted(self.missing)
        if not missing:
            return None
        name = next((n for n in sorted(self.unexpected) if n.endswith(f".{missing[0]}")), None)
        prefix = None if name is None else name.removesuffix(missing[0])
        fits = prefix is not None and {prefix + one for one in missing} <= {*self.unexpected}
        return prefix if fits else None


def plain_name(name: str) -> str:
    """The name without known prefixes."""
    for pattern, replacement in RENAMES.items():
        name = re.sub(pattern, replacement, name, count=1)
    return name


def renamed(where: str, names: Iterable[str]) -> str | None:
    """A line about the known prefixes in these names; None if they have none."""
    changed = [name for name in names if plain_name(name) != name]
    if not changed:
        return None
    parts = {prefix for prefix in _KNOWN for name in changed if f".{prefix}." in f".{name}"}
    found = " and ".join(f"`{prefix}.`" for prefix in _KNOWN if prefix in parts)
    count = counted(len(changed), "tensor")
    return f"{where}: {count} loaded without the prefix {found} that a wrapper left in their names"


def forget_renames(model: Any) -> None:
    """Make transformers save the model under its own names, and not with the removed prefixes."""
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [
        one for one in conversions if one.source_patterns[0] not in RENAMES
    ]


def examples(texts: Iterable[str]) -> str:
    """The first three texts, and how many more there are."""
    found = sorted(texts)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "one number"
