"""The bundled tokenizer."""

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer(str(SAMPLE_TOKENIZER))
