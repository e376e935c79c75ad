"""Settings for choosing the next token. They are checked without loading torch."""

import math
from dataclasses import dataclass
from typing import Any

from sftctl.errors import ConfigError

_LOWEST_TEMPERATURE = 1e-4  # the logits are divided by the temperature


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: always the most likely token
    top_p: float = 1.0  # 1: no token is excluded
    top_k: int = 0  # 0: no token is excluded

    @property
    def described(self) -> str:
        """The settings in words: `greedy`, or `temperature 0.8, top-p 0.95`."""
        if self.temperature == 0:
            return "greedy"
        more = f", top-p {self.top_p:g}" if self.top_p != 1 else ""
        more += f", top-k {self.top_k}" if self.top_k else ""
        return f"temperature {self.temperature:g}{more}"

    def arguments(self) -> dict[str, Any]:
        """Arguments for `generate`.

        Every setting is given, so the model's defaults do not apply.
        """
        plain = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        if self.temperature == 0:
            return plain | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return plain | {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def check_sampling(sampling: Sampling) -> None:
    """ConfigError for invalid numbers, and for flags that would have no effect."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise ConfigError(
            f"--temperature: expected 0 or more, got {sampling.temperature}",
            hint="0 takes the most likely token each time; 0.8 is usual for sampling",
        )
    if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
        raise ConfigError(
            f"--temperature: {sampling.temperature} is too close to 0 to divide by",
            hint="0 takes the most likely token each time",
        )
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(
            f"--top-p: expected a number above 0 and at most 1, got {sampling.top_p}",
            hint="without the flag all tokens count; 0.95 excludes unlikely ones",
        )
    if sampling.temperature == 0 and (sampling.top_p != 1 or sampling.top_k != 0):
        raise ConfigError(
            "--top-p and --top-k have no effect: at temperature 0 nothing is sampled",
            hint="add a --temperature above 0, such as 0.8",
        )
