"""Fixtures of the tests of models."""

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="session")
def bundled() -> ChatTokenizer:
    """The tokenizer of the bundled sample."""
    return load_tokenizer(str(SAMPLE_TOKENIZER))


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effect of HF_HUB_OFFLINE=1 if it is set before the library is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
