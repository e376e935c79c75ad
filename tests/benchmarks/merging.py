"""Merges and their proofs, model by model: `--only merges`.

A base is trained for a few steps with an adapter, merged by `export --merge`, and what the proof
found is a row of the table. How far the adapter moves the logits says what a wrong merge would
show.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sftctl.errors import CheckpointError
from sftctl.trained.export import export_merged
from sftctl.trained.logits import compare_logits
from sftctl.trained.merge_proof import kept_logits
from sftctl.trained.open import open_trained
from sftctl.trained.proof_rows import texts_of
from tests.benchmarks.training import run, smollm2, store_of

NUM_STEPS = 3
HEAD = ["base, adapter", "dtype", "largest change of a logit by the adapter",
        "largest error of a logit after the merge", "equal greedy tokens", "bound"]  # fmt: skip
_FOUND = re.compile(r"differ by at most (\S+), and (\S+) of")
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
Make = Callable[[Path, Path], Path]  # rows, an empty folder -> what is merged


def trained(base: Callable[[Path, Path], str], *options: str) -> Make:
    """A run of a few steps with an adapter, at a rate high enough to change the model."""

    def make(rows: Path, folder: Path) -> Path:
        model = base(rows, folder)
        store = store_of(rows, model, folder)
        _train(model, store, folder / "run", "--lora", "--learning-rate", "2e-3", *options)
        return folder / "run"

    return make


def _train(model: str, store: Path, output: Path, *options: str) -> None:
    command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
    command += ["--data", store, "--max-steps", NUM_STEPS, "--batch-size", 4, "--device", "cpu"]
    run([*command, "--save-interval", 0, "--output-dir", output, *options])


def on_experts(rows: Path, folder: Path) -> Path:
    """peft's own adapter on attention and on the experts, which are single tensors."""
    import peft
    from transformers import AutoModelForCausalLM

    base = preset("minimind-3-moe")(rows, folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM"}
    targets: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": [*_EXPERTS],
    }
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings, **targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    wrapped.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def preset(name: str, *, tied: bool = True) -> Callable[[Path, Path], str]:
    """A preset that was trained for a few steps and exported, with the bundled tokenizer."""

    def make(rows: Path, folder: Path) -> str:
        from sftctl.data.sample import SAMPLE_TOKENIZER

        store = store_of(rows, str(SAMPLE_TOKENIZER), folder / "before")
        _train(name, store, folder / "base-run")
        run([sys.executable, "-m", "sftctl", "export", folder / "base-run", "--output",
             folder / "base"])  # fmt: skip
        if not tied:
            _untie(folder / "base")
        return str(folder / "base")

    return make


def _untie(base: Path) -> None:
    """Give the model a head of its own, a little different from its embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    embeddings = model.get_input_embeddings().weight.detach()
    torch.manual_seed(1)
    noise = torch.randn_like(embeddings) * 0.01
    model.lm_head.weight = torch.nn.Parameter(embeddings + noise)
    model.save_pretrained(base)


def smollm2_file(rows: Path, folder: Path) -> str:
    """The quantized .gguf file: its dequantized weights are the base."""
    return str(smollm2())


_NF4 = ("--set", "adapter.quantize=nf4")  # needs the extra qlora

CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "`tiny`, tied": (trained(preset("tiny")), ("float32",)),
    "`tiny`, untied": (trained(preset("tiny", tied=False)), ("float32",)),
    "`tiny`, tied, base in nf4": (trained(preset("tiny"), *_NF4), ("float32",)),
    "`minimind-3-moe`, experts left out": (trained(preset("minimind-3-moe")), ("float32",)),
    "`minimind-3-moe`, peft's adapter on its experts": (on_experts, ("float32",)),
    "SmolLM2-135M (Q4_1), LoRA": (trained(smollm2_file), ("float32", "bfloat16")),
    "SmolLM2-135M (Q4_1), DoRA": (
        trained(smollm2_file, "--set", "adapter.use_dora=true"),
        ("float32", "bfloat16"),
    ),
    "SmolLM2-135M (Q4_1), base in nf4": (trained(smollm2_file, *_NF4), ("float32", "bfloat16")),
}


def merges(rows: Path, folder: Path, part: str = "") -> Iterator[list[str]]:
    """The rows of the table whose name has `part`. `rows` is a file of conversations."""
    chosen = {name: case for name, case in CASES.items() if part in name}
    for number, (name, (make, dtypes)) in enumerate(chosen.items()):
        place = folder / str(number)
        (place / "before").mkdir(parents=True)
        source = make(rows, place)
        moved = _moved(source)
        for dtype in dtypes:
            row = [name, dtype, f"{moved:.2g}", *_proved(source, place / dtype, dtype)]
            print(" | ".join(row), file=sys.stderr, flush=True)
            yield row


def _moved(source: Path) -> float:
    """The largest difference that the adapter makes to a logit, in float32."""
    opened = open_trained(source)
    assert opened.adapter is not None
    rows = [opened.tokenizer.encode(text).tolist() for text in texts_of(opened)]
    with_adapter = kept_logits(opened.model, rows)
    with opened.adapter.wrapper.disable_adapter():
        without = kept_logits(opened.model, rows)
    return compare_logits(zip(with_adapter, without, strict=True)).largest_difference


def _proved(source: Path, output: Path, dtype: str) -> list[str]:
    try:
        line, verdict = export_merged(source, output, dtype).line(), "kept"
    except CheckpointError as refusal:
        line, verdict = refusal.message, "not kept: nothing is written"
    found = _FOUND.search(line)
    assert found is not None, line
    return [found[1], found[2], verdict]
