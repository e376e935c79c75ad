"""Runs of an adapter: what they save, that they resume exactly, and which bases they refuse."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import CheckpointError, ConfigError, IncompatibleCheckpoint
from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.runs.directory import RunDir
from sftctl.train.launch import run_on_ranks
from sftctl.train.replay import replay
from sftctl.train.resume import ResumeRequest, existing_run
from sftctl.train.run import run_training
from sftctl.trained.export import export_merged
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl
from tests.toys.runs import (
    assert_same_tensors,
    lora_config,
    metrics_of,
    same_run,
    stored_tensors,
    toy_base,
    toy_config,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = lora_config(
        folder,
        train__max_steps=4,
        train__dtype="bfloat16",
        adapter__dropout=0.2,
        adapter__modules_to_save="embed_tokens",
    )
    run_training(config)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, on a copy of its base."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(toy_base(finished.parent), tmp_path / "base")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text().replace(str(toy_base(finished.parent)), str(tmp_path / "base"))
    config.write_text(text)
    return tmp_path / "run"


def continued(run: Path, step: int = 2) -> None:
    run_training(RunConfig(), ResumeRequest(run, step=step))


def last(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def test_a_checkpoint_holds_what_is_trained_and_the_hashes_of_the_base(finished: Path) -> None:
    tensors, base = stored_tensors(last(finished)), toy_base(finished.parent)
    weights = [name for name in tensors if name.startswith("model.")]
    assert all("lora_" in name or "embed_tokens" in name for name in weights)
    assert len(weights) == 2 * 7 * 2 + 1
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    recorded = read_manifest(last(finished)).base
    assert recorded is not None and recorded["name"] == str(base)
    assert recorded["files"].keys() == {"config.json", "model.safetensors"}
    learning_rate = RunDir(finished).config().optim.learning_rate
    assert learning_rate == 2e-4


def test_the_final_adapter_is_loaded_by_plain_peft(finished: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    final, base = finished / "final", toy_base(finished.parent)
    settings = jsonio.read_object(final / "adapter_config.json", CheckpointError)
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert settings["base_model_name_or_path"] == str(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), final).eval()
    here = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters()}
    for name, tensor in stored_tensors(last(finished)).items():
        if name.startswith("model.") and "lora_" in name:
            assert torch.equal(here[name.removeprefix("model.")], tensor)
    embeddings = stored_tensors(last(finished))["model.model.embed_tokens.weight"]
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert torch.equal(module.modules_to_save["default"].weight, embeddings)


def test_a_resumed_run_has_the_same_bits_and_a_replay_agrees(run: Path, finished: Path) -> None:
    continued(run)
    assert same_run(metrics_of(run)) == same_run(metrics_of(finished))
    assert_same_tensors(stored_tensors(last(run)), stored_tensors(last(finished)))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = ((path / "final" / name).read_bytes() for path in (run, finished))
        assert one.replace(str(run.parent / "base").encode(), b"B") == other.replace(
            str(toy_base(finished.parent)).encode(), b"B"
        )
    assert replay(run).is_equal


def test_a_base_that_was_only_touched_is_read_again_and_accepted(run: Path) -> None:
    weights = run.parent / "base" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    continued(run, step=3)
    recorded = read_manifest(last(run)).base
    assert recorded is not None
    assert recorded["files"]["model.safetensors"]["modified_ns"] == 1


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_another_base_is_refused(run: Path, damage: str) -> None:
    base = run.parent / "base"
    weights = base / "model.safetensors"
    if damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        problem = f"{base} is not the base that it was trained on: model.safetensors has another "
        problem += "content (SHA-256)"
    else:
        weights.unlink()
        problem = f"{base} is not the base that it was trained on: model.safetensors is missing"
    with pytest.raises(IncompatibleCheckpoint) as caught:
        continued(run)
    where = run / "checkpoints" / "step-00000002"
    assert caught.value.message == f"{where}: {problem}"
    assert caught.value.hint is not None and "put that base back" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("rank", "8", "the adapter would have other parameters"),
        ("alpha", "16.0", "other updates from here on"),
        ("alpha", "0.0", "the adapter would add nothing to the model"),
    ],
)
def test_changed_keys_of_an_adapter_are_judged(
    run: Path, key: str, value: str, problem: str
) -> None:
    file = run / "config.toml"
    lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line
             for line in file.read_text().splitlines()]  # fmt: skip
    file.write_text("\n".join(lines))
    with pytest.raises(IncompatibleCheckpoint, match=problem) as caught:
        continued(run)
    assert ("allow it: --allow adapter.alpha" in str(caught.value.hint)) == (value == "16.0")


def test_a_preset_has_nothing_to_adapt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_training(toy_config(tmp_path, adapter__lora=True))
    assert caught.value.message == (
        "adapter.lora: the preset tiny has random weights, and an adapter leaves them as they are"
    )
    assert not (tmp_path / "run").exists()


def test_an_alpha_of_zero_is_refused_and_a_run_that_has_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sftctl: Callable[..., Result]
) -> None:
    """Earlier versions trained with it."""
    config = lora_config(tmp_path, train__max_steps=1, adapter__alpha=0.0)
    with pytest.raises(ConfigError, match="adapter.alpha: 0: the adapter would add nothing"):
        run_training(config)
    monkeypatch.setattr("sftctl.train.preflight.proposal.require_base", lambda config: None)
    run_training(config)
    run, merged = tmp_path / "run", tmp_path / "merged"
    for name, *options in (
        ("inspect-ckpt",),
        ("report",),
        ("export", "--merge", "--output", merged),
    ):
        result = sftctl(name, run, *options)
        assert result.exit_code == 0, result.stderr
    before, after = (load_file(at / "model.safetensors") for at in (toy_base(tmp_path), merged))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_file_of_minimind_is_a_base_too(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    base = tmp_path / "full_sft_64.pth"
    torch.save(load_model("tiny", tokenizer, seed=1).state_dict(), base)
    settings = {"model__name": str(base), "model__tokenizer": str(SAMPLE_TOKENIZER)}
    run_training(lora_config(tmp_path, train__max_steps=1, train__dtype="float32", **settings))
    recorded = read_manifest(last(tmp_path / "run")).base
    assert recorded is not None and [*recorded["files"]] == [base.name]
    proof = export_merged(tmp_path / "run", tmp_path / "merged", "float32")
    assert proof.largest_difference < 1e-3


def test_a_type_of_the_base_that_does_not_compute_is_refused(tmp_path: Path) -> None:
    config = lora_config(tmp_path, train__dtype="float32", adapter__base_dtype="bfloat16")
    with pytest.raises(ConfigError) as caught:
        run_training(config)
    assert caught.value.message == (
        "adapter.base_dtype: bfloat16 weights do not compute in float32 (train.dtype)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"train__freeze": ["embeddings"], "adapter__lora": True}, "embeddings"),
        ({"train__freeze": ["embeddings"]}, "embeddings"),
        ({"train__train_only": ["layers[:]"]}, "embeddings"),
    ],
)
def test_rows_of_new_tokens_that_would_never_be_trained_are_refused(
    tmp_path: Path, values: dict[str, Any], part: str
) -> None:
    plain = {"model__name": str(toy_base(tmp_path)), "model__new_tokens": ["<tool>"]}
    with pytest.raises(ConfigError) as caught:
        run_training(toy_config(tmp_path, **plain | values))
    assert caught.value.message.startswith(
        f"model.new_tokens: train.freeze or train.train_only freezes the {part}, so that the rows"
    )
    assert not (tmp_path / "run").exists()


def test_auto_resume_of_a_full_run_with_an_adapter_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    base = toy_base(finished.parent)
    full = toy_config(tmp_path, model__name=str(base), train__max_steps=1)
    run_training(full)
    config = load_config(None, {"output_dir": str(full.output_dir), "adapter.lora": True})
    with pytest.raises(
        IncompatibleCheckpoint, match="trains the model itself, and this command an ada"
    ):
        run_training(config, existing_run(config))


def test_exact_sums_give_an_adapter_the_same_bits_on_two_ranks_and_resumed_on_one(
    tmp_path: Path,
) -> None:
    config = lora_config(
        tmp_path, train__max_steps=4, train__reduction="exact", adapter__dropout=0.2
    )
    run_on_ranks(2, run_training, config)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    continued(tmp_path / "copy")
    assert same_run(metrics_of(tmp_path / "run")) == same_run(metrics_of(tmp_path / "copy"))
    final = "final/adapter_model.safetensors"
    assert (tmp_path / "run" / final).read_bytes() == (tmp_path / "copy" / final).read_bytes()


def test_dora_trains_with_activation_checkpointing_as_without(tmp_path: Path) -> None:
    losses = []
    for name, checkpointing in (("with", True), ("without", False)):
        config = lora_config(
            tmp_path,
            name,
            train__max_steps=2,
            train__activation_checkpointing=checkpointing,
            checkpoint__save_interval=0,
            adapter__use_dora=True,
            adapter__dropout=0.2,
        )
        run_training(config)
        losses.append([line["loss"] for line in metrics_of(tmp_path / name)])
    assert losses[0] == losses[1]
    assert any("lora_magnitude" in name for name in stored_tensors(last(tmp_path / "with")))
