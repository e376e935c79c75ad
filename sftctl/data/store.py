"""TokenStore: tokenized examples in memory-mapped files. docs/data.md describes the layout."""

from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.manifest import PREPARE_AGAIN, SPLITS, SplitCounts
from sftctl.data.manifest import StoreManifest as StoreManifest
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

_SHARD_TOKENS = 1 << 24
_QUANTILES = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}


class TokenStoreWriter:
    """Writes one split's folder; holds at most one shard in memory."""

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

    def extend(self, examples: ExampleArrays) -> None:
        """Add examples, all to the same shard: no example spans two."""
        num_tokens = len(examples.input_ids)
        if self._num_shard_tokens + num_tokens > self._shard_tokens:
            self._write_shard()
        self._shard.append(examples)
        self._num_shard_tokens += num_tokens
        self._num_tokens += num_tokens
        self._lengths.extend(examples.lengths.tolist())
        self._target_lengths.extend(examples.target_lengths.tolist())

    def close(self) -> SplitCounts:
        """Write the last shard and the index files; return the split's counts."""
        self._write_shard()
        lengths, targets = self.lengths, np.array(self._target_lengths, dtype=np.int32)  # (N,)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (N+1,)
        np.save(self._folder / "offsets.npy", offsets)
        np.save(self._folder / "lengths.npy", lengths)
        np.save(self._folder / "target_lengths.npy", targets)
        return SplitCounts(len(lengths), int(offsets[-1]), int(targets.sum(dtype=np.int64)))

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return self._num_tokens

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each example so far: (N,)."""
        return np.array(self._lengths, dtype=np.int32)

    def length_quantiles(self) -> dict[str, int]:
        """Quantiles of the examples' lengths, in tokens. There must be at least one example."""
        values = np.quantile(self.lengths, list(_QUANTILES.values()), method="lower")
        return dict(zip(_QUANTILES, map(int, values), strict=True))

    def _write_shard(self) -> None:
        if not self._shard:
            return
        number = f"{self._num_shards:05d}.npy"
        _save_joined(self._folder / f"tokens-{number}", [part.input_ids for part in self._shard])
        _save_joined(self._folder / f"loss_mask-{number}", [part.loss_mask for part in self._shard])
        self._num_shards += 1
        self._num_shard_tokens = 0
        self._shard.clear()


def _save_joined(path: Path, parts: list[npt.NDArray[Any]]) -> None:
    """Write the bytes of np.save(concatenate(parts)) without the memory for the concatenation."""
    header = np.lib.format.header_data_from_array_1_0(parts[0])
    header["shape"] = (sum(len(part) for part in parts),)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)


class TokenStore:
    """One split of a store. Its pickle holds no arrays: a loader process maps the files itself."""

    lengths: npt.NDArray[np.integer]  # (N,) tokens of each example
    target_lengths: npt.NDArray[np.integer]  # (N,) target tokens of each example

    def __init__(self, path: Path, split: str, manifest: StoreManifest) -> None:
        self.path = path
        self.split = split
        self.manifest = manifest
        folder = path / split
        self.lengths = _load(folder / "lengths.npy", np.int32)
        self.target_lengths = _load(folder / "target_lengths.npy", np.int32)
        self._offsets = _load(folder / "offsets.npy", np.int64)  # (N+1,)
        shards = sorted(folder.glob("tokens-*.npy"))
        self._tokens = [_load(shard, np.int32) for shard in shards]
        masks = [folder / shard.name.replace("tokens", "loss_mask") for shard in shards]
        self._masks = [_load(mask, np.bool_) for mask in masks]
        sizes = np.array([len(shard) for shard in self._tokens], dtype=np.int64)
        self._shard_ends = np.cumsum(sizes).tolist()  # in tokens of the split

    @classmethod
    def open(cls, path: Path | str, split: str = "train") -> "TokenStore":
        """Map a split; DataError if its sizes do not match each other and the manifest."""
        if split not in SPLITS:
            raise DataError(f"{path}: no split {split!r}", f"known splits: {', '.join(SPLITS)}")
        store = cls(Path(path), split, StoreManifest.read(Path(path)))
        store._check()
        return store

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedExample:
        """Example `index`; its arrays are read-only views of the files.

        DataError if an id is outside the vocabulary: the file has changed since it was written.
        """
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"example {index} of {len(self)}")
        start, end = self._offsets[index : index + 2].tolist()
        shard = bisect_right(self._shard_ends, start)
        tokens, mask = self._tokens[shard], self._masks[shard]
        before = self._shard_ends[shard] - len(tokens)
        start, end = start - before, end - before
        ids = tokens[start:end]
        largest = np.maximum.reduce(ids.view(np.uint32), initial=0)  # a negative one is large
        if largest >= self.manifest.vocab_size:
            raise DataError(
                f"{self.path / self.split}: damaged: example {index} holds a token id outside the "
                f"vocabulary of {self.manifest.vocab_size}",
                PREPARE_AGAIN,
            )
        return TokenizedExample(ids, mask[start:end])

    def load_tokenizer(self) -> ChatTokenizer:
        """The tokenizer that the store was prepared with; DataError if it is damaged."""
        try:
            return load_tokenizer(str(self.path / "tokenizer"))
        except ConfigError as problem:
            raise DataError(f"{self.path}: damaged: {problem.message}", PREPARE_AGAIN) from problem

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path, self.split, self.manifest)

    def _check(self) -> None:
        """DataError if the arrays do not match each other and the manifest; hashes nothing."""
        counts = self.manifest.splits[self.split]
        num_tokens = self._shard_ends[-1] if self._tokens else 0
        matches = {
            "lengths.npy": len(self.lengths) == counts.num_examples,
            "target_lengths.npy": len(self.target_lengths) == counts.num_examples
            and int(self.target_lengths.sum(dtype=np.int64)) == counts.num_target_tokens,
            "offsets.npy": len(self._offsets) == counts.num_examples + 1
            and np.array_equal(np.diff(self._offsets), self.lengths),
            "tokens-*.npy": num_tokens == counts.num_tokens == int(self._offsets[-1]),
            "loss_mask-*.npy": [len(m) for m in self._masks] == [len(t) for t in self._tokens],
        }
        for name, is_match in matches.items():
            if not is_match:
                where = self.path / self.split / name
                raise DataError(f"{where}: does not match the manifest", PREPARE_AGAIN)


def _load(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as problem:
        raise DataError(f"{path}: missing from the store", PREPARE_AGAIN) from problem
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{path}: damaged: {problem}", PREPARE_AGAIN) from problem
    if values.ndim != 1 or values.dtype != dtype:
        raise DataError(
            f"{path}: damaged: holds {values.dtype} of shape {values.shape}", PREPARE_AGAIN
        )
    return values.view(np.ndarray)  # still mapped, but slices are faster than np.memmap's
