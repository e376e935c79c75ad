"""Several stores, used as one store. Their examples are numbered in the order of the stores."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.data.example import TokenizedExample, joined_weights
from sftctl.data.manifest import Audit, SplitCounts, StoreManifest, joined_fingerprint
from sftctl.data.store import JoinedRows, TokenStore, length_quantiles
from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


class JoinedStore:
    """One split of several stores. Has the methods of TokenStore. All stores have one tokenizer."""

    lengths: npt.NDArray[np.integer]  # (N,) tokens of each example
    target_lengths: npt.NDArray[np.integer]  # (N,) target tokens of each example

    def __init__(self, parts: Sequence[TokenStore]) -> None:
        self.parts = tuple(parts)
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.target_lengths = np.concatenate([part.target_lengths for part in parts])
        self.target_weights = _joined_sums(self.parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])[:-1].tolist()
        self.manifest = joined_manifest([part.manifest for part in parts], self.lengths)

    @property
    def path(self) -> Path:
        """The folder of the first store."""
        return self.parts[0].path

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedExample:
        """Example `index`. Raises DataError as `TokenStore.read` does."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part, place = self._find(index)
        return self.parts[part][place]

    def read(self, examples: Sequence[int]) -> JoinedRows:
        """These examples, joined end to end. Raises DataError as `TokenStore.read` does."""
        found = [self._find(index) for index in examples]
        rows = [self.parts[part].read((place,)) for part, place in found]
        return JoinedRows(
            np.concatenate([row.input_ids for row in rows]),
            np.concatenate([row.loss_mask for row in rows]),
            [length for row in rows for length in row.lengths],
            joined_weights(rows),
        )

    def load_tokenizer(self) -> ChatTokenizer:
        """The tokenizer of all stores. Raises DataError if it is damaged."""
        return self.parts[0].load_tokenizer()

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedStore, (self.parts,)

    def _find(self, index: int) -> tuple[int, int]:
        """The index of the store with an example, and the index of the example in that store."""
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]


Store = TokenStore | JoinedStore


def open_stores(paths: Sequence[Path | str], split: str = "train") -> Store:
    """Open the stores in these folders, as one store.

    Raises DataError as `TokenStore.open` and `join_stores` do.
    """
    return join_stores([TokenStore.open(path, split) for path in paths])


def join_stores(stores: Sequence[TokenStore]) -> Store:
    """The stores as one store. Raises DataError if their tokenizers or templates differ."""
    first = stores[0].manifest
    for store in stores[1:]:
        for what in ("tokenizer", "template"):
            if getattr(store.manifest, f"{what}_hash") != getattr(first, f"{what}_hash"):
                names = f"{first.tokenizer} and {store.manifest.tokenizer}"
                which = f"tokenizers ({names})" if what == "tokenizer" else "chat templates"
                raise DataError(
                    f"{stores[0].path} and {store.path} were prepared with different {which}",
                    "prepare one of them again with the tokenizer and template of the other",
                )
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def joined_manifest(
    manifests: Sequence[StoreManifest], lengths: npt.NDArray[np.integer]
) -> StoreManifest:
    """One manifest for several stores. `lengths` are the lengths of all examples in the split."""
    splits = {
        split: SplitCounts(
            *(
                sum(getattr(manifest.splits[split], name) for manifest in manifests)
                for name in ("num_examples", "num_tokens", "num_target_tokens")
            )
        )
        for split in manifests[0].splits
    }
    names = ("rows_read", "rows_kept", "rows_truncated", "rows_split", "rows_duplicated")
    sums = {n: sum(getattr(m, n) for m in manifests) for n in (*names, "rows_unpadded")}
    return replace(
        manifests[0],
        fingerprint=joined_fingerprint([manifest.fingerprint for manifest in manifests]),
        max_seq_len=max(manifest.max_seq_len for manifest in manifests),
        sources=[source for manifest in manifests for source in manifest.sources],
        splits=splits,
        num_examples=splits["train"].num_examples,
        num_validation_examples=splits["validation"].num_examples,
        num_tokens=splits["train"].num_tokens,
        num_target_tokens=splits["train"].num_target_tokens,
        length_quantiles=length_quantiles(lengths),
        audit=sum((manifest.audit for manifest in manifests), Audit()),
        special_text_first=[w for m in manifests for w in m.special_text_first],
        left_out=[text for manifest in manifests for text in manifest.left_out],
        rows_dropped=_added([manifest.rows_dropped for manifest in manifests]),
        tokens_lost=_added([manifest.tokens_lost for manifest in manifests]),
        **sums,
        files={},
        block_sha256={},
    )


def _joined_sums(parts: Sequence[TokenStore]) -> npt.NDArray[np.floating] | None:
    """`target_weights` of all parts, joined. None if all weights are 1."""
    if all(part.target_weights is None for part in parts):
        return None
    return np.concatenate(
        [p.target_lengths if p.target_weights is None else p.target_weights for p in parts]
    )


def _added(tables: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(total)
