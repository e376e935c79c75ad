"""An answer to an option of another tool: our configuration key, or a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_OFF = frozenset({"false", "no", "off", "none", "null", "0", "disabled"})


@dataclass(frozen=True, slots=True)
class Ours:
    """What replaces an option of another tool: a configuration key, or a sentence."""

    key: str | None = None
    words: str = ""  # with a key: a note about it
    value: str | None = None  # in place of the value that was typed; {} stands for the typed value
    also: tuple[str, str] | None = None  # another key that is needed too, and its value
    by_value: Mapping[str, "Ours"] = field(default_factory=dict)  # "off": false, no, none, 0 …

    def for_value(self, typed: str) -> "Ours":
        """The answer if `typed` was given as the value (empty: no value was given)."""
        word = typed.lower()
        return self.by_value.get("off" if is_off(word) else word, self)


def plain(name: str) -> str:
    """`--Per-Device_Batch.Size` -> `per_device_batch_size`."""
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")


def is_off(value: str) -> bool:
    """Whether a value turns something off."""
    return value.lower() in _OFF


def same(names: str, answer: Ours) -> dict[str, Ours]:
    """One answer for several names."""
    return dict.fromkeys(names.split(), answer)


def switch(key: str, on: str = "true", off: str = "false", words: str = "") -> Ours:
    """A key that is set to `off` if the option's value turns it off, else to `on`."""
    return Ours(key, words, on, by_value={"off": Ours(key, words, off)})
