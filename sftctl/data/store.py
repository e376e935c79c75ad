"""TokenStore: tokenized examples in files. docs/data.md describes the files."""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sftctl.data.example import ExampleArrays, TokenizedExample, Weights, joined_weights
from sftctl.data.manifest import PREPARE_AGAIN, SPLITS, SplitCounts
from sftctl.data.manifest import StoreManifest as StoreManifest
from sftctl.data.storage.array_file import ArrayFile, read_array
from sftctl.data.storage.hashes import require_sizes
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

_SHARD_TOKENS = 1 << 24
MAX_OPEN_SHARDS = 16
"""At most this many shards of a split are open. A shard that is not open is opened for a read."""
_QUANTILES = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}


class TokenStoreWriter:
    """Writes the folder of one split. At most one shard is in memory."""

    def __init__(self, folder: Path, shard_tokens: int = _SHARD_TOKENS) -> None:
        folder.mkdir()
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._shard: list[ExampleArrays] = []
        self._num_shard_tokens = 0
        self._num_shards = 0
        self._num_tokens = 0
        self._lengths = array("i")
        self._target_lengths = array("i")
        self._target_weights = array("d")
        self._has_weights = False

    def extend(self, examples: ExampleArrays) -> None:
        """Add examples. All of them go into the same shard."""
        num_tokens = len(examples.input_ids)
        if self._num_shard_tokens + num_tokens > self._shard_tokens:
            self._write_shard()
        self._shard.append(examples)
        self._num_shard_tokens += num_tokens
        self._num_tokens += num_tokens
        self._lengths.extend(examples.lengths.tolist())
        self._target_lengths.extend(examples.target_lengths.tolist())
        self._target_weights.extend(examples.target_weights.tolist())
        self._has_weights |= examples.loss_weights is not None

    def close(self) -> SplitCounts:
        """Write the last shard and the index files. Returns the counts of the split."""
        self._write_shard()
        lengths, targets = self.lengths, np.array(self._target_lengths, dtype=np.int32)  # (N,)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (N+1,)
        np.save(self._folder / "offsets.npy", offsets)
        np.save(self._folder / "lengths.npy", lengths)
        np.save(self._folder / "target_lengths.npy", targets)
        if self._has_weights:
            np.save(self._folder / "target_weights.npy", np.array(self._target_weights))
        return SplitCounts(len(lengths), int(offsets[-1]), int(targets.sum(dtype=np.int64)))

    @property
    def num_tokens(self) -> int:
        """The number of tokens added so far."""
        return self._num_tokens

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """The lengths of the examples added so far: (N,)."""
        return np.array(self._lengths, dtype=np.int32)

    def _write_shard(self) -> None:
        if not self._shard:
            return
        number = f"{self._num_shards:05d}.npy"
        _save_joined(self._folder / f"tokens-{number}", [part.input_ids for part in self._shard])
        _save_joined(self._folder / f"loss_mask-{number}", [part.loss_mask for part in self._shard])
        if (weights := joined_weights(self._shard)) is not None:
            np.save(self._folder / f"loss_weights-{number}", weights)
        self._num_shards += 1
        self._num_shard_tokens = 0
        self._shard.clear()


def length_quantiles(lengths: npt.NDArray[np.integer]) -> dict[str, int]:
    """Quantiles of the examples' lengths, in tokens. There must be at least one example."""
    values = np.quantile(lengths, list(_QUANTILES.values()), method="lower")
    return dict(zip(_QUANTILES, map(int, values), strict=True))


def _save_joined(path: Path, parts: list[npt.NDArray[Any]]) -> None:
    """Write the same bytes as np.save(concatenate(parts)), but without a joined copy in memory."""
    header = np.lib.format.header_data_from_array_1_0(parts[0])
    header["shape"] = (sum(len(part) for part in parts),)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)


class JoinedRows(NamedTuple):
    """Examples joined end to end, T tokens in total."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,)
    lengths: list[int]  # tokens of each example
    loss_weights: Weights | None = None  # (T,); None: all weights are 1


class _Shard(NamedTuple):
    """The files of one shard."""

    tokens: ArrayFile
    mask: ArrayFile
    weights: ArrayFile | None  # None: all weights are 1
    first: int  # index of its first token in the split

    def close(self) -> None:
        for file in (self.tokens, self.mask, self.weights):
            if file is not None:
                file.close()


class TokenStore:
    """One split of a store. A pickle has no arrays: a process that loads it opens the files."""

    lengths: npt.NDArray[np.integer]  # (N,) tokens of each example
    target_lengths: npt.NDArray[np.integer]  # (N,) target tokens of each example
    target_weights: npt.NDArray[np.floating] | None = None
    """(N,) sum of the weights of each example's target tokens; None: all weights are 1."""

    def __init__(self, path: Path, split: str, manifest: StoreManifest) -> None:
        self.path = path
        self.split = split
        self.manifest = manifest
        folder = path / split
        self.lengths = read_array(folder / "lengths.npy", np.int32)
        self.target_lengths = read_array(folder / "target_lengths.npy", np.int32)
        self._offsets = read_array(folder / "offsets.npy", np.int64)  # (N+1,)
        if (folder / "target_weights.npy").is_file():
            self.target_weights = read_array(folder / "target_weights.npy", np.float64)
        self._shards: list[_Shard] = []
        self._shard_ends: list[int] = []  # in tokens of the split
        self._open_shards: deque[int] = deque()  # shard numbers, in the order of opening
        for path in sorted(folder.glob("tokens-*.npy")):
            tokens = ArrayFile(path, np.int32)
            mask = ArrayFile(folder / path.name.replace("tokens", "loss_mask"), np.bool_)
            of_weights = folder / path.name.replace("tokens", "loss_weights")
            weights = ArrayFile(of_weights, np.float32) if of_weights.is_file() else None
            first = self._shard_ends[-1] if self._shards else 0
            self._shards.append(_Shard(tokens, mask, weights, first))
            self._shard_ends.append(first + tokens.length)
            self._remember_open(len(self._shards) - 1)

    @classmethod
    def open(cls, path: Path | str, split: str = "train") -> "TokenStore":
        """Open a split. Raises DataError if the sizes of its files do not match the manifest."""
        if split not in SPLITS:
            raise DataError(f"{path}: no split {split!r}", f"known splits: {', '.join(SPLITS)}")
        store = cls(Path(path), split, StoreManifest.read(Path(path)))
        store._check()
        require_sizes(store.path, store.manifest, (split,))
        return store

    @property
    def parts(self) -> tuple["TokenStore", ...]:
        """The stores that this store consists of. A `JoinedStore` has several, this class one."""
        return (self,)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedExample:
        """Example `index`. Raises DataError as `read` does."""
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"example {index} of {len(self)}")
        row = self.read((index,))
        return TokenizedExample(row.input_ids, row.loss_mask, row.loss_weights)

    def read(self, examples: Sequence[int]) -> JoinedRows:
        """These examples, joined end to end.

        Raises DataError if the store was changed since it was opened: a file became shorter, or a
        token id is outside the vocabulary.
        """
        rows = self._read(examples)
        if _largest(rows.input_ids) >= self.manifest.vocab_size:
            raise self._outside_the_vocabulary(examples)
        return rows

    def _read(self, examples: Sequence[int]) -> JoinedRows:
        rows = [(self._offsets.item(index), self.lengths.item(index)) for index in examples]
        lengths = [length for _, length in rows]
        num_tokens = sum(lengths)
        ids, mask = np.empty(num_tokens, np.int32), np.empty(num_tokens, np.bool_)
        weights: Weights | None = None
        if num_tokens:  # an empty array has no memory to view
            id_bytes, mask_bytes, begin = ids.data.cast("B"), mask.data.cast("B"), 0
            for number, group in groupby(rows, lambda row: bisect_right(self._shard_ends, row[0])):
                shard = self._opened(number)
                places = [(start - shard.first, length) for start, length in group]
                end = begin + sum([length for _, length in places])
                shard.tokens.read_rows(id_bytes[4 * begin : 4 * end], places)
                shard.mask.read_rows(mask_bytes[begin:end], places)
                if shard.weights is not None:
                    if weights is None:
                        weights = np.ones(num_tokens, np.float32)
                    shard.weights.read_rows(weights.data.cast("B")[4 * begin : 4 * end], places)
                begin = end
        return JoinedRows(ids, mask, lengths, None if weights is None else weights * mask)

    def _opened(self, number: int) -> _Shard:
        """Shard `number`. It is opened if it is closed."""
        shard = self._shards[number]
        if shard.tokens.opened is None:
            self._remember_open(number)
        return shard

    def _remember_open(self, number: int) -> None:
        """Record that a shard is open. If too many are open, close the one opened first."""
        self._open_shards.append(number)
        if len(self._open_shards) > MAX_OPEN_SHARDS:
            self._shards[self._open_shards.popleft()].close()

    def _outside_the_vocabulary(self, examples: Sequence[int]) -> DataError:
        """The error for a token id outside the vocabulary. It names the first such example."""
        size = self.manifest.vocab_size
        index = next(one for one in examples if _largest(self._read((one,)).input_ids) >= size)
        return DataError(
            f"{self.path / self.split}: damaged: example {index} holds a token id outside the "
            f"vocabulary of {size}",
            PREPARE_AGAIN,
        )

    def load_tokenizer(self) -> ChatTokenizer:
        """The tokenizer that the store was prepared with. Raises DataError if it is damaged."""
        try:
            return load_tokenizer(
                str(self.path / "tokenizer"), template_required=self.manifest.format != "text"
            )
        except ConfigError as problem:
            raise DataError(f"{self.path}: damaged: {problem.message}", PREPARE_AGAIN) from problem

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path, self.split, self.manifest)

    def _check(self) -> None:
        """Raise DataError if the sizes of arrays don't match the manifest. Computes no hashes."""
        counts = self.manifest.splits[self.split]
        num_tokens = self._shard_ends[-1] if self._shards else 0
        matches = {
            "lengths.npy": len(self.lengths) == counts.num_examples,
            "target_lengths.npy": len(self.target_lengths) == counts.num_examples
            and int(self.target_lengths.sum(dtype=np.int64)) == counts.num_target_tokens,
            "offsets.npy": len(self._offsets) == counts.num_examples + 1
            and np.array_equal(np.diff(self._offsets), self.lengths),
            "tokens-*.npy": num_tokens == counts.num_tokens == int(self._offsets[-1]),
            "loss_mask-*.npy": all(s.tokens.length == s.mask.length for s in self._shards),
            "loss_weights-*.npy": all(
                s.weights is None or s.tokens.length == s.weights.length for s in self._shards
            ),
            "target_weights.npy": self.target_weights is None
            or len(self.target_weights) == counts.num_examples,
        }
        for name, is_match in matches.items():
            if not is_match:
                where = self.path / self.split / name
                raise DataError(f"{where}: does not match the manifest", PREPARE_AGAIN)


def _largest(ids: npt.NDArray[np.int32]) -> int:
    """The largest id. Ids are read as unsigned numbers, so a negative id counts as very large."""
    return int(np.maximum.reduce(ids.view(np.uint32), initial=0))
