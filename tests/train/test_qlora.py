"""Runs on a base in nf4: bit-equal resumes, what is recorded and refused, and the proved merge."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, IncompatibleCheckpoint, SftctlError
from sftctl.model.adapter import needs
from sftctl.model.adapter.lora import quantizable_layers
from sftctl.model.adapter.nf4 import quantize
from sftctl.model.load import load_pretrained
from sftctl.train.launch import run_on_ranks
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.preflight.paths import check_before_loading
from sftctl.train.replay import replay
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.trained.export import export_merged
from sftctl.trained.open import open_trained
from tests.toys.runs import (
    assert_same_tensors,
    lora_config,
    metrics_of,
    same_run,
    stored_tensors,
    toy_base,
)

IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qlora")
    run_training(
        lora_config(
            folder,
            train__max_steps=3,
            train__dtype="bfloat16",
            adapter__dropout=0.2,
            adapter__quantize="nf4",
            optim__learning_rate=0.02,
        )
    )
    return folder / "run"


def test_a_checkpoint_holds_the_adapter_and_names_the_form_of_its_base(finished: Path) -> None:
    last = list_checkpoints(finished / "checkpoints")[-1]
    weights = [name for name in stored_tensors(last) if name.startswith("model.")]
    assert len(weights) == 2 * 7 * 2 and all("lora_" in name for name in weights)
    recorded = read_manifest(last).base
    assert recorded is not None and recorded["quantize"] == "nf4"
    started = next(jsonio.read_lines(finished / "events.jsonl"))
    plain = load_pretrained(str(toy_base(finished.parent)))
    adapter = sum(stored_tensors(last)[name].numel() for name in weights)
    assert started["num_parameters"] == sum(p.numel() for p in plain.parameters()) + adapter


def test_a_resumed_run_has_the_same_bits_and_a_replay_agrees(
    finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    run_training(RunConfig(), ResumeRequest(run, step=1))
    assert same_run(metrics_of(run)) == same_run(metrics_of(finished))
    ends = (list_checkpoints(path / "checkpoints")[-1] for path in (run, finished))
    assert_same_tensors(*(stored_tensors(end) for end in ends))
    assert replay(run).is_equal
    config = run / "config.toml"
    config.write_text(config.read_text().replace('quantize = "nf4"\n', ""))
    with pytest.raises(IncompatibleCheckpoint, match="quantize: nf4 -> None: the adapter was tra"):
        run_training(RunConfig(), ResumeRequest(run, step=1))


def test_two_ranks_each_hold_it_and_one_continues_with_the_same_bits(tmp_path: Path) -> None:
    config = lora_config(
        tmp_path, train__max_steps=2, train__reduction="exact", adapter__quantize="nf4"
    )
    run_on_ranks(2, run_training, config)
    run = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    run_training(RunConfig(), ResumeRequest(run, step=1))
    assert same_run(metrics_of(run)) == same_run(metrics_of(tmp_path / "run"))
    ends = (list_checkpoints(path / "checkpoints")[-1] for path in (run, tmp_path / "run"))
    assert_same_tensors(*(stored_tensors(end) for end in ends))


def test_it_is_merged_into_the_dequantized_weights(finished: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base = load_pretrained(str(toy_base(finished.parent)))
    source = load_pretrained(str(toy_base(finished.parent)))
    quantize(base, quantizable_layers(base), torch.float32, dequantized=True)
    with torch.no_grad():
        expected, on_source = (
            PeftModel.from_pretrained(one, finished / "final").eval()(IDS).logits
            for one in (base, source)
        )
        final = shutil.copytree(finished / "final", tmp_path / "final")
        for path in (finished, final):
            torch.testing.assert_close(open_trained(path).model.eval()(IDS).logits, expected)
        proof = export_merged(finished, tmp_path / "merged", "float32")
        merged = load_pretrained(str(tmp_path / "merged")).eval()(IDS).logits
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=0)
    assert float((merged - on_source).abs().max()) > 0.01  # so the form matters
    assert proof.largest_difference < 1e-3 and proof.source is not None
    assert proof.source.largest_difference > 0.01
    assert "merged into the source weights, logits would differ by up to 0." in str(
        proof.source_line()
    )


def test_the_plan_shows_nf4_and_its_memory(finished: Path) -> None:
    memory = {}
    for form in (None, "nf4"):
        config = lora_config(
            finished.parent, "planned", **({"adapter__quantize": form} if form else {})
        )
        plan = plan_run(config)
        memory[form] = plan.memory.weights_bytes
        [line] = [one.what for one in plan.findings if one.subject == "adapter"]
        assert (", its base in nf4: " in line) is (form == "nf4")
    tensors = load_file(toy_base(finished.parent) / "model.safetensors")
    narrow = sum(t.numel() for name, t in tensors.items() if "_proj" in name)
    assert memory[None] - memory["nf4"] == pytest.approx(narrow * (4 - 0.5159), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "problem", "hint"),
    [
        (
            {"train__strategy": "fsdp"},
            "adapter.quantize: nf4 can't be combined with strategy fsdp: fsdp can't shard 4-bit "
            "weights",
            "--strategy ddp, where each rank holds the quantized base",
        ),
        ({}, "adapter.quantize: nf4 needs bitsandbytes, which is not installed", "'sftctl[qlora]'"),
        ({"quantized": True}, "its weights are quantized (bitsandbytes, 4 bits)", "float32"),
    ],
)
def test_what_nf4_can_not_do_is_one_line(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    problem: str,
    hint: str,
) -> None:
    if not settings:
        monkeypatch.setattr(needs, "find_spec", lambda name: None)
    base = Path(shutil.copytree(toy_base(finished.parent), tmp_path / "base"))
    if settings.pop("quantized", False):
        values = jsonio.read_object(base / "config.json", ConfigError)
        values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (base / "config.json").write_bytes(jsonio.dump_line(values))
    values = {"model__name": str(base), "adapter__quantize": "nf4", **settings}
    config = lora_config(tmp_path, **values)
    for start in (check_before_loading, run_training):
        with pytest.raises(SftctlError) as caught:
            start(config)
        assert problem in caught.value.message and hint in str(caught.value.hint)
        assert caught.value.exit_code == 2 and "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()
