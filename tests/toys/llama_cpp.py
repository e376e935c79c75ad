"""A .gguf file in llama.cpp: token ids, logits and greedy answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_F32 = 0  # of ggml: the type of the cache, which is float16 by default


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A model that llama.cpp has loaded, with its computations in float32."""

    llama: Any

    @classmethod
    def open(cls, file: Path, num_positions: int = 1024) -> "LlamaCpp":
        from llama_cpp import Llama

        return cls(
            Llama(
                str(file), n_ctx=num_positions, n_batch=num_positions, logits_all=True,
                type_k=_F32, type_v=_F32, verbose=False,
            )
        )  # fmt: skip

    def encode(self, text: str) -> list[int]:
        """The token ids; special tokens are recognized, none is added."""
        ids: list[int] = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of an answer."""
        text: bytes = self.llama.detokenize(ids)
        return text.decode("utf-8", "replace").strip()

    def logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after each token (T, V)."""
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())

    def answer(self, prompt: list[int], stops: list[int], max_new_tokens: int) -> list[int]:
        """The most likely token, again and again, until one of `stops`."""
        found = list[int]()
        for token in self.llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token in stops:
                break
            found.append(token)
            if len(found) == max_new_tokens:
                break
        return found
