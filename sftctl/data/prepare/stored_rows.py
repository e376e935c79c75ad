"""Read the conversations of a store again from the input files. (A store has no texts.)"""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import numpy as np

from sftctl.config.schema import DataConfig
from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.manifest import StoreManifest, is_prepared
from sftctl.data.masks.leading import without_leading_answers
from sftctl.data.prepare.duplicates import SeenDigests
from sftctl.data.prepare.row_batches import RowPreparation
from sftctl.data.prepare.validation_split import split_of
from sftctl.data.reading.columnar import is_columnar
from sftctl.data.reading.folders import Wanted
from sftctl.data.reading.rows import Raw, raw_rows
from sftctl.data.reading.sources import find_sources
from sftctl.data.sample import sample_files
from sftctl.data.store import TokenStore
from sftctl.errors import DataError
from sftctl.model.tokenizer.template_errors import TemplateFailed
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def stored_rows(
    store: TokenStore, given: str | None, tokenizer: ChatTokenizer
) -> Iterator[Conversation]:
    """The conversations of a split, in the order of its examples.

    `given` is the path in the configuration: conversations, a store, or None for the bundled
    sample. A row belongs to the split if its tokens equal the tokens of the next example. Raises
    DataError if a file is missing, or if no row has the tokens of the next example.
    """
    manifest = store.manifest
    preparation = RowPreparation.of(
        tokenizer.with_date(manifest.date), _settings(manifest), SeenDigests()
    )
    place, files = 0, _files_of(store, given)
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise DataError(
            f"{missing}: missing: {store.path} was made from this file, and its text is needed",
            "restore the file, or use the conversations instead of the store",
        )
    for row in chain.from_iterable(_rows_of(file, store, preparation) for file in files):
        if place == len(store):
            return
        try:
            examples, _ = preparation.maker.examples(row)
        except (BadRow, TemplateFailed):
            continue
        if examples and np.array_equal(examples[0].input_ids, store[place].input_ids):
            place += len(examples)
            yield row
    if place < len(store):
        names = ", ".join(map(str, files))
        raise DataError(
            f"{names}: changed since {store.path} was made from it: the row of example {place} "
            "was not found",
            "prepare the data again",
        )


def _settings(manifest: StoreManifest) -> DataConfig:
    """The settings that a store was prepared with."""
    names = {item.name for item in fields(DataConfig)} & {item.name for item in fields(manifest)}
    values = {name: getattr(manifest, name) for name in names - {"sources"}}
    return replace(DataConfig(), **values)


def _files_of(store: TokenStore, given: str | None) -> list[Path]:
    """The files that may have rows of the split. Files that are only for validation come first."""
    if given is None:
        train, validation = sample_files()
        return [validation, train] if store.split == "validation" else [train]
    if not is_prepared(given):
        return [Path(given)]
    entries = store.manifest.sources
    if store.split == "validation" and not store.manifest.val_fraction:
        entries = sorted(entries, key=lambda entry: entry.num_examples > 0)
    return [Path(entry.file) for entry in entries]


def _rows_of(file: Path, store: TokenStore, preparation: RowPreparation) -> Iterator[Conversation]:
    """The conversations in a file or folder that may be in the split."""
    data, share = preparation.data, store.manifest.val_fraction
    columns = parse_columns(data.columns)
    with find_sources([file], Wanted(format=data.format)) as sources:
        for source in sources:
            from_arrow = is_columnar(source.path)
            for line, raw in raw_rows(source.path, source.name, data.format, columns):
                try:
                    row = _conversation(preparation, line, raw, from_arrow=from_arrow)
                except BadRow:
                    continue
                if not share or split_of(row, share) == store.split:
                    yield row


def _conversation(
    preparation: RowPreparation, line: SourceLine, raw: Raw, *, from_arrow: bool
) -> Conversation:
    row = preparation.conversation(raw, line, from_arrow=from_arrow)
    row, _ = preparation.special_text(raw, row)
    drops = preparation.data.leading_assistant == "drop"
    return without_leading_answers(row) if drops else row
