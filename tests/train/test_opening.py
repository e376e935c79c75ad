"""Opening a session: what is decided when a model is loaded, and when nothing is left to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.load import save_pretrained
from sftctl.model.row_attention import why_rows_mix
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.engine import build
from sftctl.train.opening import new_session, restored_session, resumed_session
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.models import toy_base
from tests.toys.runs import stored_tensors, toy_config


def capped_model(folder: Path) -> Path:
    """A small Gemma 2, whose head caps its logits, with the bundled tokenizer."""
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    folder.mkdir()
    model = toy_base("gemma2", vocab_size=tokenizer.vocab_size, num_hidden_layers=1)
    save_pretrained(model, tokenizer, folder)
    return folder


def test_a_plain_head_is_used_alone_and_without_a_warning(tmp_path: Path) -> None:
    with new_session(toy_config(tmp_path), ALONE, StopRequest()) as session:
        assert session.warnings == ()
        assert session.state.loss_module.uses_own_forward is False


def test_with_a_head_that_caps_its_logits_the_models_own_forward_is_used(tmp_path: Path) -> None:
    model = capped_model(tmp_path / "gemma")
    with new_session(toy_config(tmp_path, model__name=str(model)), ALONE, StopRequest()) as session:
        rows, head = session.warnings
        assert rows == (
            "one example in each pass, which is slower: laid end to end in one pass, examples "
            "would change each other in this model (ValueError: attention by rows does not support "
            "softcap)"
        )
        assert "does more than multiply by its weight" in head
        assert session.shape.rows_alone is True
        assert session.state.loss_module.uses_own_forward is True


def test_a_run_is_complete_when_it_is_trained_and_its_model_is_written(tmp_path: Path) -> None:
    """The checkpoint may be older than the last validation, which comes before the model."""
    config = toy_config(tmp_path, data__val_fraction=0.3, train__max_steps=2)
    run = run_training(config).run_dir
    with restored_session(ResumeRequest(run), ALONE, StopRequest()) as session:
        progress = session.state.progress
        assert session.is_complete
        progress.step = 1
        assert not session.is_complete
        progress.step = 2
        assert session.is_complete
        session.run.final.rename(run / "elsewhere")
        assert not session.is_complete


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_size_of_a_checkpoint_is_known_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    config = toy_config(tmp_path, train__max_steps=1, train__dtype=dtype)
    run = run_training(config).run_dir
    [checkpoint] = list_checkpoints(run / "checkpoints")
    stored = sum(t.numel() * t.element_size() for t in stored_tensors(checkpoint).values())
    with restored_session(ResumeRequest(run), ALONE, StopRequest()) as session:
        assert session.state.checkpoint_bytes == stored


def test_a_resume_checks_rows_with_the_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of rows laid end to end uses these weights, not random ones."""
    run = run_training(toy_config(tmp_path, train__max_steps=1)).run_dir
    asked: list[torch.Tensor] = []

    def note(model: Any, longest_row: int) -> str | None:
        asked.append(model.lm_head.weight.detach().clone())
        return why_rows_mix(model, longest_row)

    monkeypatch.setattr(build, "why_rows_mix", note)
    with restored_session(ResumeRequest(run), ALONE, StopRequest()):
        pass
    [checkpoint] = list_checkpoints(run / "checkpoints")
    stored = stored_tensors(checkpoint)
    assert torch.equal(asked[0], stored["model.model.embed_tokens.weight"])


def test_a_resume_with_nothing_left_to_train_changes_no_file(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__max_steps=1)
    run = run_training(config).run_dir
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    other = replace(config, checkpoint=replace(config.checkpoint, keep=7))
    with resumed_session(ResumeRequest(run, config=other), ALONE, StopRequest()) as session:
        assert session.config.checkpoint.keep == 7
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
