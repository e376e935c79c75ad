"""Thousands of real rows: every text, token id and mask equals that of a reference."""

from collections import Counter
from pathlib import Path

import pytest

from sftctl.data.conversations.conversation import Conversation, from_text
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.prepare.workers import Work
from sftctl.data.reading.rows import raw_rows
from sftctl.environment import usable_cores
from sftctl.model.tokenizer.template_limits import Pulse
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.toys.data import conversations
from tests.toys.fetched import sharegpt_file
from tests.toys.masks.comparison import Comparison
from tests.toys.masks.templates import FAMILIES

pytestmark = pytest.mark.real

OWN = ["smollm2", "minimind"]


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path, smollm2: Path, folder: Path) -> dict[str, Path]:
    """Both as folders, because reading a tokenizer from a .gguf file takes long."""
    load_tokenizer(str(smollm2)).save(folder / "smollm2")
    return {"smollm2": folder / "smollm2", "minimind": shared_data / "minimind_tokenizer"}


@pytest.fixture(scope="module")
def sharegpt(downloads: Path) -> list[Conversation]:
    """All complete rows. The others must be exactly those that are known to be broken."""
    rows, reasons = list[Conversation](), Counter[str]()
    for source, raw in raw_rows(sharegpt_file(downloads), "sharegpt.json"):
        row = _parsed(raw, source)
        if isinstance(row, BadRow):
            reasons[row.reason] += 1
        else:
            rows.append(row)
    assert (len(rows) + reasons["empty"], reasons) == (17_671, {"empty": 126, "cut_off": 1})
    assert sum(row.messages[0]["role"] == "assistant" for row in rows) == 6_358
    return rows


def _parsed(raw: bytes | BadRow, source: SourceLine) -> Conversation | BadRow:
    if isinstance(raw, BadRow):
        return raw
    try:
        return from_text(raw, "auto", source)
    except BadRow as problem:
        return problem


def num_kept(comparison: Comparison, rows: list[Conversation]) -> int:
    """Compare all rows, on every core; returns how many both sides accept."""

    def compare(part: list[Conversation], pulse: Pulse) -> int:
        return sum(comparison.assert_equal(row) for row in part)

    parts = [rows[start : start + 100] for start in range(0, len(rows), 100)]
    return sum(Work(function=compare).in_order(parts, usable_cores()))


@pytest.mark.parametrize("name", [None, *FAMILIES])
@pytest.mark.parametrize("vocabulary", OWN)
def test_every_row_of_four_sets(
    tokenizers: dict[str, Path], shared_data: Path, vocabulary: str, name: str | None
) -> None:
    comparison = Comparison(tokenizers[vocabulary], name or vocabulary)
    files = sorted(shared_data.glob("*.json"))
    rows = [row for file in files for row in conversations(file)]
    assert len(rows) == 2_799
    kept = num_kept(comparison, rows)
    has_tools = (name or vocabulary) in ("minimind", "qwen2.5", "qwen3")
    assert kept == len(rows) if has_tools else 2_499 <= kept < len(rows)


@pytest.mark.parametrize("vocabulary", OWN)
def test_every_row_of_sharegpt_by_the_tokenizers_own_template(
    tokenizers: dict[str, Path], sharegpt: list[Conversation], vocabulary: str
) -> None:
    comparison = Comparison(tokenizers[vocabulary], vocabulary)
    dropped = len(sharegpt) - num_kept(comparison, sharegpt)
    assert dropped == 17  # without an assistant turn; those that begin with one are kept


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("vocabulary", OWN)
def test_every_twentieth_row_of_sharegpt_by_every_family(
    tokenizers: dict[str, Path], sharegpt: list[Conversation], vocabulary: str, name: str
) -> None:
    comparison = Comparison(tokenizers[vocabulary], name)
    rows = sharegpt[::20]
    assert num_kept(comparison, rows) > len(rows) // 2
