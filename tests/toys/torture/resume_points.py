"""Resume one run from every kind of step, in new processes: the promise of `resume`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from sftctl import jsonio
from sftctl.config.schema import RunConfig
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.load import save_pretrained
from sftctl.model.presets import preset_config
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest
from tests.toys.runs import assert_same_end, metrics_of, toy_config
from tests.toys.torture.processes import forked, train

WARMUP_STEPS, EVAL_INTERVAL, EPOCH_END, LAST = 3, 4, 6, 12
RESUME_STEPS = {
    "before the first step": 0,
    "after the first step": 1,
    "in warm-up": WARMUP_STEPS - 1,
    "after an evaluation": EVAL_INTERVAL,
    "before the first step of an epoch": EPOCH_END,
    "in the middle": EPOCH_END + 3,
    "before the last step": LAST - 1,
    "after the last step": LAST,
}
ADAPTER: dict[str, object] = {
    "adapter__lora": True, "adapter__rank": 4, "adapter__dropout": 0.2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run is trained."""

    num_workers: int
    accumulation_steps: int
    num_ranks: int
    dtype: str
    lora: bool = False  # an adapter with dropout is trained, not the model

    def __str__(self) -> str:
        return (
            f"{self.num_workers} workers, accumulation {self.accumulation_steps}, "
            f"{self.num_ranks} ranks, {self.dtype}{', LoRA' if self.lora else ''}"
        )


def assert_every_resume_ends_alike(folder: Path, setting: Setting) -> None:
    """Train a run without a stop. Then, for each step, resume from what was on the disk then."""
    config = _config(folder, setting)
    _train(config, None, setting)
    whole = folder / "whole"
    assert len(metrics_of(whole)) == LAST
    assert metrics_of(whole)[EPOCH_END]["epoch"] == metrics_of(whole)[EPOCH_END - 1]["epoch"] + 1
    for place, step in RESUME_STEPS.items():
        run = folder / place.replace(" ", "-")
        _copy_as_it_was(whole, run, step)
        _train(RunDir.open(run).config(), ResumeRequest(run, step=step or None), setting)
        assert_same_end(run, whole)


def _config(folder: Path, setting: Setting) -> RunConfig:
    """12 steps on 16 examples: 2 epochs of 6 steps or, with accumulation, 4 epochs of 3."""
    shape = {"train__batch_size": 3, "train__epochs": 2}
    if setting.accumulation_steps > 1:
        shape = {"train__batch_size": 2, "train__epochs": 4}
    return toy_config(
        folder, "whole", **shape, model__name=str(_model_with_dropout(folder)),
        optim__learning_rate=1e-3, train__accumulation_steps=setting.accumulation_steps,
        train__micro_batch_tokens=64, train__dtype=setting.dtype, data__val_fraction=0.2,
        train__eval_interval=EVAL_INTERVAL, optim__warmup_steps=WARMUP_STEPS,
        data__num_workers=setting.num_workers, **ADAPTER if setting.lora else {},
    )  # fmt: skip


def _model_with_dropout(folder: Path) -> Path:
    """The tiny preset with dropout: a resume must not change the random draws."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    config = preset_config("tiny", tokenizer.vocab_size)
    config.attention_dropout = 0.1
    path = folder / "model"
    save_pretrained(AutoModelForCausalLM.from_config(config), tokenizer, path)
    return path


def _train(config: RunConfig, request: ResumeRequest | None, setting: Setting) -> None:
    with forked(train, config, request, ranks=setting.num_ranks) as ranks:
        assert set(ranks.ended()) == {0}, ranks.printed()


def _copy_as_it_was(whole: Path, run: Path, step: int) -> None:
    """Copy the run directory as it was at a step; metrics.jsonl keeps its later lines."""
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("step-*", "final"))
    if step:
        checkpoint = f"checkpoints/step-{step:08d}"
        shutil.copytree(whole / checkpoint, run / checkpoint)
    events = [line for line in jsonio.read_lines(whole / "events.jsonl") if line["step"] <= step]
    (run / "events.jsonl").write_bytes(b"".join(map(jsonio.dump_line, events)))
