"""Examples that are tokenized each time they are read, to compare with a store."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.conversation import from_text
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.masks.encode import tokenize
from sftctl.data.reading.folders import Wanted
from sftctl.data.reading.rows import raw_rows
from sftctl.data.reading.sources import find_sources
from sftctl.data.sample import sample_files
from sftctl.data.storage.joined import Store
from sftctl.data.store import TokenStore
from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

MOST_ROWS = 2000
"""At most so many rows are used. All rows are tokenized at the start, because the cut into
micro-batches needs their lengths."""

Row = tuple[SourceLine, bytes]


class TextExamples:
    """Can be used like a TokenStore. Each access parses, renders, encodes and masks a row."""

    def __init__(self, rows: Sequence[Row], tokenizer: ChatTokenizer, data: DataConfig) -> None:
        self._tokenizer, self._data = tokenizer, data
        self._rows: list[Row] = []
        lengths, target_lengths = [], []
        for row in rows:
            with suppress(BadRow):
                example = self._tokenized(row)
                if example.num_target_tokens:
                    self._rows.append(row)
                    lengths.append(example.num_tokens)
                    target_lengths.append(example.num_target_tokens)
        self.lengths: npt.NDArray[np.integer] = np.array(lengths, dtype=np.int64)
        self.target_lengths: npt.NDArray[np.integer] = np.array(target_lengths, dtype=np.int64)
        self.target_weights: npt.NDArray[np.floating] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self._tokenized(self._rows[index])

    def _tokenized(self, row: Row) -> TokenizedExample:
        source, text = row
        columns = parse_columns(self._data.columns)
        conversation = from_text(text, self._data.format, source, columns)
        # Some templates give several examples for a row. Only the first example is measured.
        example, *_ = tokenize(conversation, self._tokenizer, self._data.train_on)
        return example.first(self._data.example_tokens)


def text_examples(config: RunConfig, store: Store, tokenizer: ChatTokenizer) -> TextExamples:
    """The first rows of the files that a store was made from. Raises DataError if one is gone."""
    manifest = store.manifest
    given = [source.path for source in config.data.sources or ()]
    if not any(given):
        given = [config.data.path or str(sample_files()[0])]
    paths = [
        path for one, part in zip(given, store.parts, strict=True) for path in _texts(one, part)
    ]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{missing[0]}: missing: {store.path} was made from this file",
            hint="use the conversations, not the store, as --data",
        )
    data = replace(config.data, max_seq_len=manifest.max_seq_len)
    columns = parse_columns(data.columns)
    with find_sources(paths, Wanted(format=data.format)) as sources:
        every = (row for s in sources for row in raw_rows(s.path, s.name, data.format, columns))
        texts = [(line, text) for line, text in islice(every, MOST_ROWS) if isinstance(text, bytes)]
    return TextExamples(texts, tokenizer.with_date(manifest.date), data)


def _texts(given: str | None, store: TokenStore) -> list[Path]:
    """The text files for a path in the configuration. For a store: the files that it was made
    from."""
    if given is None or Path(given) == store.path:
        return [Path(entry.file) for entry in store.manifest.sources]
    return [Path(given)]
