"""The report of inspect-ckpt, as text."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from sftctl.cli.show.fitting_table import FittingTable
from sftctl.cli.show.output import facts_table
from sftctl.config.evaluation import Goal
from sftctl.words import counted, format_age, format_bytes

if TYPE_CHECKING:
    from sftctl.inspection.inspection import Inspection

_SHOWN_FILES = 8


def checkpoint_report(report: "Inspection") -> RenderableType:
    """Whether a checkpoint can be resumed, its content, and the other checkpoints of its run."""
    table = facts_table()
    table.add_row("checkpoint", str(report.path))
    for name, text in _verdict(report):
        table.add_row(name, text)
    for problem in report.problems:
        table.add_row("problem", Text(problem, style="red"))
    for name, text in (*_facts(report), *_contents(report)):
        table.add_row(name, text)
    if report.final is not None:
        table.add_row("final model", _final(report.final))
    return Group(table, _siblings(report.checkpoints)) if report.checkpoints else table


def _facts(report: "Inspection") -> Iterator[tuple[str, str]]:
    """The state of the training: one line for each known fact."""
    facts = report.facts
    known = facts.get
    yield "format", report.format + (f", saved {_ago(report.saved_at)}" if report.saved_at else "")
    if known("step") is not None:
        of = f" of {known('total_steps')}" if known("total_steps") is not None else ""
        yield "step", f"{known('step')}{of}{_remark(report.step_counts)}"
    if known("epoch") is not None:
        yield "epoch", _epoch(report)
    if known("examples_seen") is not None or known("tokens_seen") is not None:
        counts = (("examples", known("examples_seen")), ("tokens", known("tokens_seen")))
        yield "seen", ", ".join(f"{n:,} {what}" for what, n in counts if n is not None)
    if report.loss is not None:
        yield "loss", f"{report.loss:.4f} in this step"
    if known("learning_rate") is not None or report.next_learning_rate is not None:
        rates = (("this step", known("learning_rate")), ("next", report.next_learning_rate))
        yield "learning rate", ", ".join(f"{_rate(rate)} {when}" for when, rate in rates)
    if known("global_batch_size") is not None:
        yield "global batch", counted(facts["global_batch_size"], "example")
    if known("world_size") is not None:
        yield "ranks", str(known("world_size"))
    if known("dtype"):
        scale = facts["scaler"].get("scale") if isinstance(known("scaler"), dict) else None
        is_number = isinstance(scale, (int, float))
        yield "dtype", facts["dtype"] + (f", scaler at {scale:g}" if is_number else "")
    if known("validation"):
        yield "validation loss", _validation(facts["validation"])


def _validation(validation: Mapping[str, Any]) -> str:
    """The first and the last validation loss, and the best value with its step."""
    goal, step = validation.get("goal"), validation.get("best_step")
    of_what = f" {Goal.parsed(goal).shown}" if isinstance(goal, str) else ""
    named = (("first", "first"), ("best", f"best{of_what}"), ("last", "last"))
    values = ((text, validation.get(key)) for key, text in named)
    return ", ".join(
        f"{text} {value:.4f}"
        + (f" (step {step})" if text.startswith("best") and step is not None else "")
        for text, value in values
        if value is not None
    )


def _epoch(report: "Inspection") -> str:
    done, of = report.facts.get("step_in_epoch"), report.facts.get("steps_per_epoch")
    total = report.facts.get("total_steps")
    epochs = f" of {total // of}" if of and total and total % of == 0 else ""
    if of and done == 0 and report.facts["epoch"]:
        return f"{report.facts['epoch']:g}{epochs} done"
    ratio = f" ({report.epoch_ratio:.0%})" if report.epoch_ratio is not None else ""
    where = f", step {done} of {of} in the epoch" if of and done is not None else ""
    if report.is_ours:
        return f"{_shown_epoch(report):g}{epochs}{where}{ratio}"
    return f"{report.facts['epoch']:g}{where}{ratio}{_remark(report.epoch_counts)}"


def _shown_epoch(report: "Inspection") -> float | None:
    """The epoch of the last step, from 1. For a checkpoint of another tool: the stored number.

    After the last step of an epoch, the stored position is already in the next epoch.
    """
    epoch: float | None = report.facts.get("epoch")
    if not report.is_ours or epoch is None:
        return epoch
    return epoch if epoch and report.facts.get("step_in_epoch") == 0 else epoch + 1


def _contents(report: "Inspection") -> Iterator[tuple[str, str]]:
    by_group = report.parameters_by_group
    num_parameters = sum(by_group.values())
    if num_parameters:
        groups = ", ".join(f"{name} {n:,}" for name, n in by_group.items())
        yield "parameters", f"{num_parameters:,}: {groups}"
    moments = report.optimizer_moments
    if moments or num_parameters:
        counts = ", ".join(f"{name} of {counted(n, 'tensor')}" for name, n in moments.items())
        yield "optimizer", counts or "no moments"
    if report.rng is not None:
        yield "randomness", _rng(report.rng)
    if report.data_store is not None:
        fits = {True: "fits", False: "does not fit", None: "not checked"}
        why = report.data_store["why"]
        fingerprint = str(report.facts.get("data_fingerprint"))[:12]
        verified = ", verified" if report.data_store.get("verified") else ""
        verdict = f"{fits[report.data_store['fits']]}{verified}{_remark(why)}"
        yield "data", f"{fingerprint}, {report.data_store['path']}: {verdict}"
    versions = report.facts.get("versions")
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if report.facts.get("wandb_run_id"):
        yield "W&B run", report.facts["wandb_run_id"]
    yield "size", f"{format_bytes(report.num_bytes)} in {counted(len(report.files), 'file')}"
    sizes = sorted(report.files.items(), key=lambda item: -item[1]["num_bytes"])
    for name, entry in sizes[:_SHOWN_FILES]:
        yield "", f"{format_bytes(entry['num_bytes']):>12}  {name}"


def _rng(rng: Mapping[str, Any]) -> str:
    if "scheme" in rng:
        return f"{rng['scheme']}; seed {rng['seed']}"
    return f"generator states ({', '.join(rng['generators'])}) of {counted(rng['ranks'], 'rank')}"


def _verdict(report: "Inspection") -> Iterator[tuple[str, str]]:
    verified = {None: "no", True: "yes", False: "no: damaged"}
    yield "resumable", "yes, on this machine" if report.resumable else "no"
    for obstacle in report.obstacles:
        yield "reason", obstacle
    if report.advice:
        yield "next", report.advice
    yield "complete", "yes" if report.complete else "no"
    yield "verified", verified[report.verified]
    for note in report.notes:
        yield "note", note


def _final(final: Mapping[str, Any]) -> str:
    """The facts about `final/`, as text."""
    if final["problems"]:
        return f"damaged: {'; '.join(final['problems'])}"
    if final["step"] is None:
        return "without a manifest: written by an earlier version"
    verified = {None: "", True: ", verified"}[final["verified"]]
    why = ", the best" if final.get("choice") == "best" else ""
    return f"of step {final['step']}{why}{verified}"


def _siblings(reports: "Sequence[Inspection]") -> FittingTable:
    """A table with one row for each checkpoint of a run, the oldest first."""
    table = FittingTable(
        *("name", "step", "epoch", "loss", "LR", "size", "saved", "complete"),
        first_to_go=("LR", "saved", "epoch", "size", "name"),
        right=("step", "epoch", "loss", "LR", "size"),
        title="checkpoints of the run",
    )
    for report in reports:
        row = report.summary()
        loss, saved_at = row["loss"], row["saved_at"]
        table.add_row(
            row["name"],
            _number(row["step"]),
            _number(_shown_epoch(report)),
            "-" if loss is None else f"{loss:.4f}",
            _rate(row["learning_rate"]),
            format_bytes(row["num_bytes"]),
            "-" if saved_at is None else _ago(saved_at),
            "yes" if row["complete"] and not row["problems"] else "no",
        )
    return table


def _ago(saved_at: float) -> str:
    return format_age(max(0, time.time() - saved_at))


def _remark(text: str | None) -> str:
    return f" ({text})" if text else ""


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"
