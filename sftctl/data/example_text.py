"""Stored examples as text, split into trained and untrained pieces, for display."""

import numpy as np

from sftctl.data.store import TokenStore

Run = tuple[str, bool]
"""The text of consecutive tokens, special ones included, and whether they are trained."""


def shown_examples(store: TokenStore, count: int) -> list[list[Run]]:
    """The first `count` examples, each as pieces of trained and untrained tokens."""
    tokenizer, shown = store.load_tokenizer(), []
    for index in range(min(count, len(store))):
        example = store[index]
        edges = np.flatnonzero(np.diff(example.loss_mask)) + 1
        parts = np.split(example.input_ids, edges)
        trained = example.loss_mask[[0, *edges]].tolist()
        texts = [tokenizer.decode(part) for part in parts]
        shown.append(list(zip(texts, trained, strict=True)))
    return shown
