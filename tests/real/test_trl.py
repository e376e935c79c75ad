"""inspect-ckpt on a checkpoint that TRL made; needs the `bench` extra."""

from pathlib import Path

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.inspection.inspect import inspect_path

pytestmark = pytest.mark.real


def test_a_checkpoint_of_trl_is_recognized(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_TOKENIZER)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads))
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=2, save_steps=2, logging_steps=1, use_cpu=True, bf16=False,
        per_device_train_batch_size=2, report_to=[], dataset_num_proc=None,
    )  # fmt: skip
    rows = [{"prompt": "Say a number.", "completion": f" {number}"} for number in range(8)]
    trl.SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train()
    report = inspect_path(tmp_path / "checkpoint-2", verify=True).to_json()
    assert report["format"] == "TRL checkpoint (SFTConfig)"
    assert (report["step"], report["total_steps"], report["global_batch_size"]) == (2, 2, 2)
    assert report["learning_rate"] > 0 and report["loss"] > 0
    assert report["optimizer_moments"]["exp_avg"] > 0 and report["rng"]["ranks"] == 1
    assert (report["complete"], report["problems"]) == (True, [])
