"""An adapter that TRL's SFTTrainer trained: inspected, continued and merged here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftctl.config.existing_adapter import layer_of
from sftctl.config.load import Layer, load_layers
from sftctl.inspection.inspect import inspect_path
from sftctl.jsonio import read_lines
from sftctl.model.load import load_pretrained
from sftctl.train.run import run_training
from sftctl.trained.export import export_merged
from tests.toys.runs import toy_base, toy_data

pytestmark = pytest.mark.real


def trained_by_trl(folder: Path) -> Path:
    """Three steps of TRL on the toy rows, with TRL's and peft's usual settings."""
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    datasets = pytest.importorskip("datasets")
    rows: list[dict[str, Any]] = [*read_lines(toy_data(folder))]
    trainer = trl.SFTTrainer(
        model=str(toy_base(folder)),
        args=trl.SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.02,
            report_to="none",
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft.LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return folder / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 40)[None]).logits
    return found


def test_an_adapter_of_trl_is_inspected_continued_and_merged(tmp_path: Path) -> None:
    from peft import PeftModel

    adapter, base = trained_by_trl(tmp_path), str(toy_base(tmp_path))
    found = inspect_path(adapter)
    assert found.format == "TRL adapter directory (LORA)" and not found.problems
    assert "an adapter of rank 4 on " in found.notes[0]
    theirs = logits(PeftModel.from_pretrained(load_pretrained(base), adapter))
    assert float((theirs - logits(load_pretrained(base))).abs().max()) > 0.01
    proof = export_merged(adapter, tmp_path / "merged", "float32")
    assert proof.largest_difference < 1e-3
    torch.testing.assert_close(
        logits(load_pretrained(str(tmp_path / "merged"))), theirs, atol=1e-3, rtol=0
    )
    values = {
        "adapter.start": str(adapter),
        "data.path": str(toy_data(tmp_path)),
        "train.max_steps": 1,
        "train.dtype": "float32",
        "optim.learning_rate": 0.0,
        "output_dir": str(tmp_path / "run"),
    }
    layers = [Layer("--set", values)]
    run_training(load_layers([*layer_of(layers), *layers])[0])
    final = tmp_path / "run/final"
    ours, before = (load_file(path / "adapter_model.safetensors") for path in (final, adapter))
    assert ours.keys() == before.keys()
    assert all(torch.equal(ours[name], before[name].float()) for name in ours)
    assert torch.equal(logits(PeftModel.from_pretrained(load_pretrained(base), final)), theirs)
