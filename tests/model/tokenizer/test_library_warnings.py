"""Each warning of the libraries is one line on stderr."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.source import on_stderr, quiet
from sftctl.model.tokenizer.library_warnings import library_warnings
from sftctl.model.tokenizer.tokenizer import load_tokenizer


def test_each_warning_is_one_line_and_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    quiet()
    on_stderr.cache_clear()
    logger = transformers_logging.get_logger("transformers.models.some")
    for _ in range(2):
        with library_warnings("tokenizer x"):
            logger.warning("an incorrect regex\n  pattern")
            logger.info("loading")
            logger.warning("Model config: eos_token_id must be less")  # read with the tokenizer
            logger.warning("The following generation flags are not valid: no sampling is ours")
            logger.warning("XForCausalLM LOAD REPORT from: x\n…")  # weight_names says it
            warnings.warn("unknown fields", stacklevel=1)
            warnings.warn("soon gone", FutureWarning, stacklevel=1)
    logger.warning("outside")
    assert capsys.readouterr().err.splitlines() == [
        "warning: tokenizer x: an incorrect regex pattern",
        "warning: model x: Model config: eos_token_id must be less",
        "warning: tokenizer x: unknown fields",
    ]


def test_a_good_tokenizer_loads_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(str(SAMPLE_TOKENIZER))
    assert capsys.readouterr().err == ""


def test_a_tokenizer_of_another_class_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(SAMPLE_TOKENIZER, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Nobody"}))
    load_tokenizer(str(folder))
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"warning: tokenizer {folder}: ") for line in lines)
