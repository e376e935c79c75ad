"""How the next token of an answer is chosen."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """The numbers of it."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: always the likeliest, no randomness
    top_p: float = 1.0  # 1: all tokens
    top_k: int = 0  # 0: all tokens

    def arguments(self) -> dict[str, Any]:
        """For `generate`; every one of them, so that no default of the model's own is taken."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
