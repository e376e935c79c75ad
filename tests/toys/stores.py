"""Examples in memory, as the loader needs them."""

from collections.abc import Sequence

import numpy as np

from sftctl.data.example import TokenizedExample


class ToyStore:
    """Random examples of the given lengths; the padding id 0 is in none of them."""

    def __init__(self, lengths: Sequence[int], vocab_size: int = 97, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.examples = [_example(int(length), vocab_size, rng) for length in lengths]
        self.lengths = np.array([item.num_tokens for item in self.examples], dtype=np.int64)
        self.target_lengths = np.array([item.num_target_tokens for item in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.examples[index]


def _example(length: int, vocab_size: int, rng: np.random.Generator) -> TokenizedExample:
    mask = rng.random(length) < 0.5
    mask[-1] = True
    mask[0] = False  # nothing predicts the first token
    return TokenizedExample(rng.integers(1, vocab_size, length, dtype=np.int32), mask)
