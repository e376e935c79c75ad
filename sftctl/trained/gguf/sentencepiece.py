"""Encode a text as llama.cpp does, with the SentencePiece vocabulary of a .gguf file.

An export uses this to check its file. transformers' reader can't do that, because the model's
architecture decides how that reader writes spaces. Source: `llm_tokenizer_spm_session` and
`tokenizer_st_partition` in `llama-vocab.cpp`.
"""

import re
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path

SPACE = "▁"
"""The letter for a space in the vocabulary."""


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """The vocabulary of a .gguf file."""

    ids: dict[str, int]
    scores: list[float]
    special: "re.Pattern[str]"
    strips_right: frozenset[str]
    """Special tokens that also take the spaces after them."""
    adds_space: bool

    @classmethod
    def read(cls, file: Path) -> "SentencePiece":
        """The vocabulary of a file that `write_vocabulary` has written."""
        from gguf import GGUFReader, TokenType

        fields = GGUFReader(file).fields
        tokens, scores, types = (
            fields[f"tokenizer.ggml.{name}"].contents()
            for name in ("tokens", "scores", "token_type")
        )
        kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        special = [token for token, kind in zip(tokens, types, strict=True) if kind in kinds]
        longest_first = sorted(special, key=len, reverse=True)
        strips = special if "phi-3" in fields["general.name"].contents().lower() else []
        return cls(
            ids={token: index for index, token in enumerate(tokens)},
            scores=scores,
            special=re.compile(f"({'|'.join(map(re.escape, longest_first))})"),
            strips_right=frozenset(strips) - PHI3_KEEPS,
            adds_space=fields["tokenizer.ggml.add_space_prefix"].contents(),
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of a text. Special tokens in it are recognized."""
        found, before = list[int](), ""
        for piece in self.special.split(text):
            if before in self.strips_right:
                piece = piece.lstrip(" \t\n\v\f\r")
            if self.special.fullmatch(piece):
                found.append(self.ids[piece])
            elif piece:
                found += self._merged(
                    (SPACE if self.adds_space else "") + piece.replace(" ", SPACE)
                )
            before = piece
        return found

    def _merged(self, text: str) -> list[int]:
        """Join neighbours until no pair is a token. The pair with the highest score is next."""
        parts = list(text)
        next_of = [*range(1, len(parts)), -1]
        previous = list(range(-1, len(parts) - 1))

        def pair(left: int, right: int) -> list[tuple[float, int, int, int]]:
            if left < 0 or right < 0 or (index := self.ids.get(parts[left] + parts[right])) is None:
                return []
            return [(-self.scores[index], left, right, len(parts[left]) + len(parts[right]))]

        queue = [item for left in range(len(parts) - 1) for item in pair(left, left + 1)]
        heapify(queue)
        while queue:
            _, left, right, size = heappop(queue)
            if not parts[left] or not parts[right] or len(parts[left] + parts[right]) != size:
                continue  # one of the two was already joined with another neighbour
            parts[left], parts[right] = parts[left] + parts[right], ""
            after = next_of[left] = next_of[right]
            if after >= 0:
                previous[after] = left
            for item in (*pair(previous[left], left), *pair(left, after)):
                heappush(queue, item)
        return [index for part in parts if part for index in self._ids_of(part)]

    def _ids_of(self, part: str) -> list[int]:
        if part in self.ids:
            return [self.ids[part]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]


PHI3_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""The special tokens of Phi 3 that do not take the spaces after them."""
