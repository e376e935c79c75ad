"""Notes on a store for the screen: facts that the user should know in addition to the counts."""

from collections.abc import Iterator
from pathlib import Path

from sftctl.data.manifest import StoreManifest
from sftctl.words import counted

Note = tuple[str, str]
"""(subject, text of the note)."""

_SHOWN = 10

FEW_ROWS = 0.01
"""The user is warned if more than this fraction of the rows is dropped."""


def store_notes(manifest: StoreManifest) -> Iterator[Note]:
    """Notes about rows and files that were left out or changed. The most important come first."""
    yield from _special_text(manifest)
    for source in manifest.sources:
        if source.rows and not source.rows_kept and source.rows_dropped:
            yield "no usable row", f"{source.file}: {dropped_rows(source.rows_dropped)}"
    yield from _remarks(manifest)
    if manifest.val_fraction and not manifest.num_validation_examples:
        yield "validation", "no row was drawn: too few rows for this val_fraction"
    yield from _left_out(manifest)
    if manifest.date is not None:
        yield "date", f"the chat template writes a date: {manifest.date} in all rows (data.date)"
    if manifest.layout_differs:
        yield "masks", f"all rows were made the long way ({manifest.layout_differs})"
    if manifest.rows_unpadded:
        rows = counted(manifest.rows_unpadded, "row")
        yield "padding", f"nulls were removed from tools or calls of {rows}"


def _left_out(manifest: StoreManifest) -> Iterator[Note]:
    """The files of a folder that were not read: other splits and archives, then all others."""
    meant = ("data by its name)", "(an archive or workbook")
    named = [t for t in manifest.left_out if any(m in t for m in meant) and "not a data" not in t]
    others = [text.rpartition(" (")[0] for text in manifest.left_out if text not in set(named)]
    if named:
        yield "not read", shortened(named)
    if others:
        files = counted(len(others), "file is", "files are")
        yield "other files", f"{files} not data by name: {shortened(others)}"


_REMARKS = {
    "empty_answer": (
        "empty answers", "has an answer without text, so the model learns to answer nothing"
    ),
    "open_thought": (
        "thinking", "has an answer that ends inside a thinking block: was the text cut off?"
    ),
    "empty_question": ("empty questions", "has a question without text"),
    "placeholder": (
        "media", "has a placeholder for an image or sound (<image>), which the model does not get"
    ),
    "unlisted_call": ("tool calls", "calls a tool that is not among the row's tools"),
    "unknown_token": (
        "unknown characters", "trains the unknown token, because the vocabulary lacks characters"
    ),
}  # fmt: skip


def _remarks(manifest: StoreManifest) -> Iterator[Note]:
    for remark, (subject, what) in _REMARKS.items():
        count = getattr(manifest.audit, f"rows_with_{remark}")
        if count:
            verb, rest = what.split(" ", 1)
            many = {"has": "have"}.get(verb, verb.removesuffix("s"))
            rows = counted(count, f"row {verb}", f"rows {many}")
            yield subject, f"{rows} {rest}{_first(manifest, remark)}"


def accounting(manifest: StoreManifest, store: Path) -> str:
    """One line: `chats.jsonl: 20 of 40 rows kept; dropped: empty 20 (first …:1); ledger: FILE`."""
    files = shortened([source.file for source in manifest.sources])
    line = f"{files}: {manifest.rows_kept:,} of {counted(manifest.rows_read, 'row')} kept"
    changed = {"truncated": manifest.rows_truncated, "split": manifest.rows_split}
    line += "".join(f", {count:,} of them {how}" for how, count in changed.items() if count)
    if manifest.rows_dropped:
        dropped = (
            f"{reason} {rows:,}{_first(manifest, reason)}"
            for reason, rows in manifest.rows_dropped.items()
        )
        line += f"; dropped: {', '.join(dropped)}"
    return f"{line}; ledger: {store / 'ledger.jsonl'}" if manifest.has_notes else line


def many_dropped(manifest: StoreManifest) -> str | None:
    """A warning if more than 1% of the rows were dropped."""
    num_dropped = sum(manifest.rows_dropped.values())
    if num_dropped <= FEW_ROWS * manifest.rows_read:
        return None
    return (
        f"{num_dropped / manifest.rows_read:.0%} of the rows are dropped "
        f"({dropped_rows(manifest.rows_dropped).removesuffix(' dropped')})"
    )


def _first(manifest: StoreManifest, reason: str) -> str:
    where = manifest.first_rows.get(reason)  # None: the store was made by an older version
    return f" (first {where})" if where is not None else ""


def dropped_rows(dropped: dict[str, int]) -> str:
    """Counts as text: `bad_role 3, empty 1 dropped`."""
    return f"{', '.join(f'{reason} {rows:,}' for reason, rows in dropped.items())} dropped"


def shortened(texts: list[str]) -> str:
    """The first ten texts, and how many more there are."""
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _special_text(manifest: StoreManifest) -> Iterator[Note]:
    num_rows = manifest.audit.rows_with_special_text
    if not num_rows:
        return
    hold = "row holds" if num_rows == 1 else "rows hold"
    if manifest.special_text == "escape":
        what, advice = "which was escaped", ""
    else:
        what = "which becomes a special token"
        advice = "; --special-text refuse drops such rows, --special-text escape keeps the text"
    first = "; ".join(manifest.special_text_first)
    yield "special text", f"{num_rows:,} {hold} a special token's text, {what}: {first}{advice}"
