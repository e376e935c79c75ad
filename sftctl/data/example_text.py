"""Stored examples as text, split into trained and untrained pieces, for display."""

import numpy as np

from sftctl.data.storage.joined import Store

Run = tuple[str, float]
"""The text of consecutive tokens with the same weight, and this weight. 0: not trained."""


def shown_examples(store: Store, count: int) -> list[list[Run]]:
    """The first `count` examples. Each example is a list of pieces with the same weight."""
    tokenizer, shown = store.load_tokenizer(), []
    for index in range(min(count, len(store))):
        example = store[index]
        weights = example.loss_weights
        if weights is None:
            weights = example.loss_mask.astype(np.float32)
        edges = np.flatnonzero(np.diff(weights)) + 1
        texts = [tokenizer.decode(part) for part in np.split(example.input_ids, edges)]
        shown.append(list(zip(texts, weights[[0, *edges]].tolist(), strict=True)))
    return shown
