"""All of ShareGPT: the fast engine makes the reference's store, and every row is accounted for."""

from pathlib import Path

import numpy as np
import pytest

from sftctl.data.store import TokenStore
from tests.real.conftest import sftctl
from tests.toys.fetched import sharegpt_file

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stores(downloads: Path, smollm2: Path, folder: Path) -> dict[str, TokenStore]:
    """The stores that both engines make."""
    source = sharegpt_file(downloads)
    for engine in ("auto", "hf"):
        settings = ["--max-seq-len", "2048", "--engine", engine, "--tokenizer", str(smollm2)]
        sftctl("prepare-data", source, "--output", folder / engine, *settings)
    return {engine: TokenStore.open(folder / engine) for engine in ("auto", "hf")}


def test_ids_and_masks_are_those_of_the_reference_for_every_row(
    stores: dict[str, TokenStore],
) -> None:
    fast, reference = stores["auto"], stores["hf"]
    assert fast.manifest.engine.startswith("splintr-rs ")
    assert fast.manifest.engine_rows_checked > 100
    assert reference.manifest.engine.startswith("tokenizers ")
    files = sorted((fast.path / "train").iterdir())
    assert len(files) > 4
    for file in files:
        assert np.array_equal(np.load(file), np.load(reference.path / "train" / file.name)), file


def test_every_row_is_kept_or_in_the_ledger(stores: dict[str, TokenStore]) -> None:
    manifest = stores["auto"].manifest
    assert manifest.rows_read == 17_672  # the last one is cut
    assert (manifest.rows_dropped["empty"], manifest.rows_dropped["cut_off"]) == (126, 1)
    assert "mask_not_exact" not in manifest.rows_dropped
    assert manifest.rows_kept == manifest.num_examples == 17_672 - 126 - 1 - 369
    assert manifest.audit.passed
