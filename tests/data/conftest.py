"""Tokenizers for the tests of data/."""

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CHATML, SHARED, CountingTokenizer, load


@pytest.fixture(scope="session")
def chatml() -> CountingTokenizer:
    """The bundled tokenizer with plain ChatML."""
    return load(SAMPLE_TOKENIZER, CHATML)


@pytest.fixture(scope="session")
def minimind() -> CountingTokenizer:
    """MiniMind's tokenizer, whose template has thinking blocks and tools."""
    if not SHARED.exists():
        pytest.skip("../shared/data is absent")
    return load(SHARED / "minimind_tokenizer")


@pytest.fixture(scope="session")
def thinking_minimind(minimind: CountingTokenizer) -> ChatTokenizer:
    """MiniMind's tokenizer, with the option with which its prompts open a thinking block."""
    return minimind.with_options({"open_thinking": True})
