"""`checkpoint-N` of transformers' Trainer, and of TRL, which is one of its kind."""

import math
import re
from pathlib import Path
from typing import Any

from sftctl.errors import NoCheckpoint
from sftctl.inspection.formats.files import read_json, read_torch, read_weights, report_of, settings
from sftctl.inspection.formats.model_files import tell_model
from sftctl.inspection.formats.optimizer import OptimizerFacts, take_optimizer
from sftctl.inspection.pickles.opcodes import Made
from sftctl.inspection.pickles.torch_file import archive_digest
from sftctl.inspection.pickles.values import number, plain, table
from sftctl.inspection.report import Report

STATE_NAME = "trainer_state.json"
_STEP_NAME = re.compile(r"checkpoint-([0-9]+)")
_RNG_NAME = re.compile(r"rng_state(_[0-9]+)?\.pth")
_WANTED = ("optimizer.pt", "scheduler.pt", "training_args.bin")


def checkpoints_in(path: Path) -> list[Path]:
    """The Trainer's checkpoints in its output folder, by step."""
    found = {int(m[1]): p for p in path.iterdir() if (m := _STEP_NAME.fullmatch(p.name))}
    return [found[step] for step in sorted(found) if (found[step] / STATE_NAME).is_file()]


def inspect_output(path: Path) -> Report:
    """The newest checkpoint of an output folder, with `checkpoints` of all."""
    found = checkpoints_in(path)
    if not found:
        raise NoCheckpoint(f"{path}: no checkpoint-N with {STATE_NAME} in it")
    newest = inspect_trainer(found[-1])
    newest.checkpoints = [inspect_trainer(checkpoint) for checkpoint in found]
    return newest


def inspect_trainer(path: Path) -> Report:
    """What a Trainer's checkpoint says of itself."""
    report = report_of(path, "transformers Trainer checkpoint", ("*", "*/*"))
    state, arguments = read_json(report, STATE_NAME), read_torch(report, "training_args.bin")
    options = table(plain(arguments.value))
    if isinstance(arguments.value, Made) and arguments.value.by.startswith("trl."):
        report.format = f"TRL checkpoint ({arguments.value.by.rpartition('.')[2]})"
    tell_model(report, read_json(report, "config.json"))
    read_weights(report)
    optimizer = take_optimizer(report, read_torch(report, "optimizer.pt"), prefix="")
    report.rng = _rng(report)
    scaler = settings(report, "scaler.pt")
    if options:
        report.facts |= {"config": {"training_args": options}}
    _tell_state(report, state, options)
    _tell_rates(report, state, optimizer)
    report.facts |= {"scaler": scaler or None, "dtype": _dtype(options) or report.weights_dtype}
    _judge(report)
    return report


def _tell_state(report: Report, state: dict[str, Any], options: dict[str, Any]) -> None:
    step, total = state.get("global_step"), state.get("max_steps")
    epochs, world_size = state.get("num_train_epochs"), _world_size(report, options)
    report.facts |= {"step": step, "epoch": state.get("epoch"), "total_steps": total}
    report.facts["tokens_seen"] = state.get("num_input_tokens_seen") or None
    report.facts["world_size"] = world_size
    batch = options.get("per_device_train_batch_size", state.get("train_batch_size"))
    pieces = [batch, options.get("gradient_accumulation_steps"), world_size]
    if all(isinstance(piece, int) for piece in pieces):
        report.facts["global_batch_size"] = math.prod(pieces)
    if isinstance(total, int) and isinstance(epochs, int) and epochs and total % epochs == 0:
        per_epoch = total // epochs
        report.facts["steps_per_epoch"] = per_epoch
        if isinstance(step, int) and per_epoch:
            report.facts["step_in_epoch"] = step % per_epoch
    report.step_counts = "optimizer updates (global_step)"
    report.epoch_counts = "epochs done, with their fraction"


def _tell_rates(report: Report, state: dict[str, Any], optimizer: OptimizerFacts) -> None:
    scheduler = settings(report, "scheduler.pt")
    rates = scheduler.get("_last_lr")
    report.next_learning_rate = number(rates[0]) if isinstance(rates, list) and rates else None
    if report.next_learning_rate is None:
        report.next_learning_rate = optimizer.learning_rate
    history = state.get("log_history")
    logged = [line for line in history or [] if isinstance(line, dict)]
    now = [line for line in logged if line.get("step") == state.get("global_step")]
    for line in now:  # of this very step: what was logged earlier speaks of another
        report.loss = number(line.get("loss")) or report.loss
        rate = number(line.get("learning_rate"))
        report.facts["learning_rate"] = rate or report.facts.get("learning_rate")
    losses = [(line.get("step"), line["eval_loss"]) for line in logged if "eval_loss" in line]
    if losses:
        values = [loss for _, loss in losses]
        first, best, last = values[0], min(values), values[-1]
        report.facts["validation"] = {
            "first": first,
            "best": best,
            "last": last,
            "step": losses[-1][0],
        }


def _world_size(report: Report, options: dict[str, Any]) -> int | None:
    """As many ranks as the arguments say, or as there are RNG states."""
    processes = table(options.get("distributed_state")).get("num_processes")
    states = sum(1 for name in report.files if _RNG_NAME.fullmatch(name))
    return processes if isinstance(processes, int) else states or None


def _dtype(options: dict[str, Any]) -> str | None:
    """Of autocast."""
    if options.get("bf16"):
        return "bfloat16"
    return "float16" if options.get("fp16") else "float32" if options else None


def _rng(report: Report) -> dict[str, Any] | None:
    names = sorted(name for name in report.files if _RNG_NAME.fullmatch(name))
    if not names:
        return None
    generators = sorted(map(str, table(read_torch(report, names[0]).value)))
    digests = [archive_digest(report.path / name) for name in names]
    return {"ranks": len(names), "generators": generators, "digests": digests}


def _judge(report: Report) -> None:
    """Whole for its own tool, or not; never to be resumed by ours."""
    missing = [name for name in _WANTED if name not in report.files]
    folders = {name.partition("/")[0] for name in report.files if "/" in name}
    if "optimizer.pt" in missing and any("optim" in folder for folder in folders):
        missing.remove("optimizer.pt")  # FSDP's is a folder
    if report.rng is None:
        missing.append("rng_state.pth")
    if not report.tensors and not folders:
        missing.append("weights")
    if missing:
        report.notes.append(f"not in it: {', '.join(missing)}")
    report.obstacles.append("sftctl resumes its own runs only")
    report.advice = (
        f"trainer.train(resume_from_checkpoint={str(report.path)!r}) goes on with it; "
        f"`sftctl train --model {report.path}` starts a run from its weights"
    )
