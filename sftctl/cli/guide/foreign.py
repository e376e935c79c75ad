"""The answer to an option of another tool: a configuration key of sftctl, or a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_OFF = frozenset({"false", "no", "off", "none", "null", "0", "disabled"})


@dataclass(frozen=True, slots=True)
class Ours:
    """What sftctl has instead of an option of another tool: a configuration key, or a sentence."""

    key: str | None = None
    words: str = ""  # the sentence; with a key: a note about the key
    value: str | None = None  # the value for the key; {} is the typed value. None: the typed value
    also: tuple[str, str] | None = None  # a second key that must be set, and its value
    by_value: Mapping[str, "Ours"] = field(default_factory=dict)
    """Typed value -> another answer for this value. "off" stands for false, no, none, 0, …"""

    def for_value(self, typed: str) -> "Ours":
        """The answer for the value `typed`. An empty text means that no value was given."""
        word = typed.lower()
        return self.by_value.get("off" if is_off(word) else word, self)


def plain(name: str) -> str:
    """`--Per-Device_Batch.Size` -> `per_device_batch_size`."""
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")


def is_off(value: str) -> bool:
    """Whether a value means "off", such as `false` or `none`."""
    return value.lower() in _OFF


def same(names: str, answer: Ours) -> dict[str, Ours]:
    """Name -> `answer`, for several names separated by spaces."""
    return dict.fromkeys(names.split(), answer)


def switch(key: str, on: str = "true", off: str = "false", words: str = "") -> Ours:
    """A key that is set to `off` if the typed value means "off", and otherwise to `on`."""
    return Ours(key, words, on, by_value={"off": Ours(key, words, off)})
