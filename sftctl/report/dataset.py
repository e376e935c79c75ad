"""The section about the data of a run: the store, lengths of examples, and loss masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.data.example_text import shown_examples
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.notes import store_notes
from sftctl.data.storage.joined import open_stores
from sftctl.errors import SftctlError
from sftctl.report.charts import bar_chart
from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord
from sftctl.report.wording import count, facts, percent, table

_NUM_EXAMPLES = 3
_MAX_EXAMPLE_CHARS = 3000
_MAX_BARS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What the page shows about a store."""

    manifest: StoreManifest
    lengths: npt.NDArray[np.integer[Any]]  # (N,) for the train split
    target_lengths: npt.NDArray[np.integer[Any]]  # (N,)
    examples: list[list[tuple[str, float]]]  # pieces of text, and their weights


def open_dataset(record: RunRecord) -> Dataset | None:
    """The store of a run. If it was moved or changed: None, and a remark is added to the record."""
    paths = _stores_of(record)
    if not paths or not all(path.is_dir() for path in paths):
        record.remarks.append("the token store of this run was moved or deleted: no data is shown")
        return None
    path = paths[0]
    try:
        store = open_stores(paths)
        examples = shown_examples(store, _NUM_EXAMPLES)
    except SftctlError as problem:
        record.remarks.append(problem.message)
        return None
    fingerprints = {event.get("data_fingerprint") for event in record.events} - {None}
    if fingerprints and store.manifest.fingerprint not in fingerprints:
        record.remarks.append(f"{path}: not shown, because the run was trained on another store")
        return None
    return Dataset(store.manifest, store.lengths, store.target_lengths, examples)


def _stores_of(record: RunRecord) -> list[Path]:
    """The folders of the stores of a run: from the last event that names stores, or from the
    configuration."""
    event: dict[str, Any]
    event = next((e for e in reversed(record.events) if isinstance(e.get("store"), str)), {})
    several = event.get("stores")
    if isinstance(several, list) and all(isinstance(path, str) for path in several):
        return [Path(path) for path in several]
    one = event.get("store") or record.config.get("data", {}).get("path")
    return [] if one is None else [Path(one)]


def data_section(data: Dataset) -> Html:
    """The section: two histograms, counts of the store, and examples with trained text marked."""
    manifest = data.manifest
    splits = [
        (name, *(count(n) for n in (part.num_examples, part.num_tokens, part.num_target_tokens)))
        for name, part in manifest.splits.items()
    ]
    sources = [
        (entry.file, count(entry.rows), count(entry.rows_kept), entry.sha256[:12])
        for entry in manifest.sources
    ]
    return join(
        tag(
            "div",
            _lengths(data.lengths),
            _shares(data),
            class_="charts",
        ),
        tag("div", _facts(manifest), _audit(data), class_="pair"),
        table(("part", "examples", "tokens", "target tokens"), splits),
        table(("source", "rows", "kept", "sha256"), sources),
        tag("h3", "What is trained"),
        tag("p", "Only marked text counts in the loss.", class_="note"),
        *(_example(runs) for runs in data.examples),
    )


def _facts(manifest: StoreManifest) -> Html:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rows_dropped.items() if n)
    return facts(
        [
            ("rows read", count(manifest.rows_read)),
            ("rows kept", f"{manifest.rows_kept:,} ({manifest.rows_truncated:,} truncated)"),
            ("rows dropped", dropped or "none"),
            ("duplicate rows", count(manifest.rows_duplicated)),
            ("tokens lost", count(sum(manifest.tokens_lost.values()))),
            ("maximum length", f"{manifest.max_seq_len:,} tokens, then {manifest.overflow}"),
            ("trained on", manifest.train_on),
            ("tokenizer", manifest.tokenizer),
            ("engine", manifest.engine),
            ("fingerprint", manifest.fingerprint[:16]),
            *store_notes(manifest),
        ]
    )


def _audit(data: Dataset) -> Html:
    shares = _target_shares(data)
    without = int(np.count_nonzero(data.target_lengths == 0))
    low, middle, high = np.quantile(shares, (0.05, 0.5, 0.95))
    audit = data.manifest.audit
    return facts(
        [
            ("audit of the masks", "passed" if audit.passed else "; ".join(audit.problems())),
            ("trained turns", f"{audit.turns:,} ({audit.turns_cut:,} truncated)"),
            ("tokens trained", percent(data.target_lengths.sum() / data.lengths.sum())),
            ("share per example", f"median {percent(middle)}"),
            ("90% of examples have", f"{percent(low)} to {percent(high)}"),
            ("examples without target tokens", count(without)),
            ("examples trained completely", count(int(np.count_nonzero(shares >= 1)))),
            ("fewest target tokens", f"{int(data.target_lengths.min()):,}"),
            ("most target tokens", f"{int(data.target_lengths.max()):,}"),
        ]
    )


def _lengths(lengths: npt.NDArray[np.integer[Any]]) -> Html:
    longest = int(lengths.max())
    width = -(-longest // _MAX_BARS)
    edges = np.arange(0, longest + width, width)
    counts, _ = np.histogram(lengths, edges)
    return _histogram("Length of an example", counts, edges.tolist(), "tokens")


def _shares(data: Dataset) -> Html:
    counts, edges = np.histogram(_target_shares(data), 20, (0.0, 1.0))
    return _histogram(
        "Trained share of an example", counts, (100 * edges).tolist(), "% of its tokens"
    )


def _histogram(
    title: str, counts: npt.NDArray[np.integer[Any]], edges: Sequence[float], unit: str
) -> Html:
    return bar_chart(title, counts.tolist(), edges, "{:,.0f}".format, unit)


def _target_shares(data: Dataset) -> npt.NDArray[np.floating[Any]]:
    shares: npt.NDArray[np.floating[Any]] = data.target_lengths / np.maximum(1, data.lengths)
    return shares


def _example(runs: list[tuple[str, float]]) -> Html:
    left, shown = _MAX_EXAMPLE_CHARS, []
    for text, weight in runs:
        part = text[:left]
        shown.append(tag("mark", part) if weight else tag("span", part))
        if weight not in (0, 1) and left > 0:
            shown.append(tag("span", f"×{weight:g}", class_="note"))
        left -= len(part)
    if left <= 0:
        shown.append(tag("span", " …", class_="note"))
    return tag("pre", *shown, class_="example")
