"""The data of a run: its manifest, the lengths of its examples, and what the mask trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.data.example_text import shown_examples
from sftctl.data.store import StoreManifest, TokenStore
from sftctl.errors import SftctlError
from sftctl.report.charts import bar_chart
from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord
from sftctl.report.wording import count, facts, percent, table

_NUM_SHOWN = 3
_MOST_SHOWN_LETTERS = 3000
_MOST_BARS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A store as the report shows it."""

    manifest: StoreManifest
    lengths: npt.NDArray[np.integer[Any]]  # (N,) of the training part
    target_lengths: npt.NDArray[np.integer[Any]]  # (N,)
    examples: list[list[tuple[str, bool]]]  # runs of text, and whether they are trained


def open_dataset(record: RunRecord) -> Dataset | None:
    """The store of a run where it still is; else a remark, and None."""
    told = [event["store"] for event in record.events if isinstance(event.get("store"), str)]
    given = told[-1:] or [record.config.get("data", {}).get("path")]
    if given[0] is None or not Path(given[0]).is_dir():
        record.remarks.append("the token store of this run is not where it was: no data is shown")
        return None
    path = Path(given[0])
    try:
        store = TokenStore.open(path)
        examples = shown_examples(store, _NUM_SHOWN)
    except SftctlError as problem:
        record.remarks.append(problem.message)
        return None
    fingerprints = {event.get("data_fingerprint") for event in record.events} - {None}
    if fingerprints and store.manifest.fingerprint not in fingerprints:
        record.remarks.append(f"{path}: another store than the one that was trained: not shown")
        return None
    return Dataset(store.manifest, store.lengths, store.target_lengths, examples)


def data_section(data: Dataset) -> Html:
    """The manifest, both histograms, and examples with what is trained in them."""
    manifest = data.manifest
    splits = [
        (name, *(count(n) for n in (part.num_examples, part.num_tokens, part.num_target_tokens)))
        for name, part in manifest.splits.items()
    ]
    sources = [(entry.file, count(entry.rows), entry.sha256[:12]) for entry in manifest.sources]
    return join(
        tag(
            "div",
            _lengths(data.lengths),
            _shares(data),
            class_="charts",
        ),
        tag("div", _facts(manifest), _audit(data), class_="pair"),
        table(("part", "examples", "tokens", "target tokens"), splits),
        table(("source", "rows", "sha256"), sources),
        tag("h3", "What is trained"),
        tag("p", "The marked text is what the loss counts; the rest is only read.", class_="note"),
        *(_example(runs) for runs in data.examples),
    )


def _facts(manifest: StoreManifest) -> Html:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rows_dropped.items() if n)
    return facts(
        [
            ("rows read", count(manifest.rows_read)),
            ("rows kept", f"{manifest.rows_kept:,} ({manifest.rows_truncated:,} truncated)"),
            ("rows dropped", dropped or "none"),
            ("rows said twice", count(manifest.rows_duplicated)),
            ("tokens lost", count(sum(manifest.tokens_lost.values()))),
            ("longest allowed", f"{manifest.max_seq_len:,} tokens ({manifest.overflow} beyond)"),
            ("trained on", manifest.train_on),
            ("tokenizer", manifest.tokenizer),
            ("engine", manifest.engine),
            ("fingerprint", manifest.fingerprint[:16]),
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
            ("trained turns", f"{audit.turns:,} ({audit.turns_cut:,} cut by the longest allowed)"),
            ("tokens trained", percent(data.target_lengths.sum() / data.lengths.sum())),
            ("share in an example", f"median {percent(middle)}"),
            ("5% to 95% of examples", f"{percent(low)} to {percent(high)}"),
            ("examples without a target", count(without)),
            ("examples trained whole", count(int(np.count_nonzero(shares >= 1)))),
            ("shortest target", f"{int(data.target_lengths.min()):,} tokens"),
            ("longest target", f"{int(data.target_lengths.max()):,} tokens"),
        ]
    )


def _lengths(lengths: npt.NDArray[np.integer[Any]]) -> Html:
    longest = int(lengths.max())
    width = -(-longest // _MOST_BARS)
    edges = np.arange(0, longest + width, width)
    counts, _ = np.histogram(lengths, edges)
    return _histogram("Length of the examples", counts, edges.tolist(), "tokens")


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


def _example(runs: list[tuple[str, bool]]) -> Html:
    left, shown = _MOST_SHOWN_LETTERS, []
    for text, is_trained in runs:
        part = text[:left]
        shown.append(tag("mark", part) if is_trained else tag("span", part))
        left -= len(part)
    if left <= 0:
        shown.append(tag("span", " …", class_="note"))
    return tag("pre", *shown, class_="example")
