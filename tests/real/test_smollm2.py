"""SmolLM2-135M-Instruct is fine-tuned from its GGUF file, exported, and used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftctl.trained.open import open_trained
from tests.real.conftest import events, sftctl

pytestmark = pytest.mark.real

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def run(shared_data: Path, smollm2: Path, folder: Path) -> Path:
    """One epoch on the first rows of Alpaca: a few steps."""
    rows = json.loads((shared_data / "alpaca_en_demo.json").read_text())[:64]
    (folder / "alpaca-64.json").write_text(json.dumps(rows))
    sftctl(
        "prepare-data", folder / "alpaca-64.json", "--output", folder / "store",
        "--tokenizer", smollm2, "--max-seq-len", 256, "--val-fraction", 0.2,
    )  # fmt: skip
    sftctl(
        "train", "--model", smollm2, "--data", folder / "store", "--batch-size", 8, "--epochs", 1,
        "--learning-rate", 2e-5, "--output-dir", folder / "run",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, folder: Path) -> Path:
    sftctl("export", run, "--output", folder / "exported")
    return folder / "exported"


@torch.no_grad()
def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    logits: torch.Tensor = model.eval()(input_ids=prompt["input_ids"]).logits  # (1, T, V)
    return logits


def test_a_few_steps_lower_the_validation_loss(run: Path) -> None:
    first, *_, last = events(run, "evaluation")
    assert first["step"] == 0 and first["num_target_tokens"] > 500
    assert last["validation_loss"] < first["validation_loss"]


def test_plain_transformers_computes_our_logits_from_the_exported_directory(
    run: Path, exported: Path
) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    ours = open_trained(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    expected, computed = logits(ours.model, ours.tokenizer.hf), logits(theirs, tokenizer)
    assert expected.shape == computed.shape
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def test_the_weights_were_trained_and_not_only_copied(smollm2: Path, exported: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    after = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    difference = (logits(after, tokenizer) - logits(before, tokenizer)).abs().max()
    assert difference > 1e-3


def test_it_still_knows_the_capital_of_france(run: Path) -> None:
    assert "Paris" in sftctl("chat", run, "--prompt", PROMPT)
