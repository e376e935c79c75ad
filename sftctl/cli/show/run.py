"""How a run ended, as text."""

import math
import shlex

from rich.console import RenderableType
from rich.text import Text

from sftctl.metrics import RunSummary
from sftctl.words import counted


def run_summary(summary: RunSummary) -> RenderableType:
    """How a run ended, and the commands to type next."""
    where = shlex.quote(str(summary.run_dir))
    lines = {
        "finished": f"finished: step {summary.step} of {summary.total_steps}",
        "stopped": f"stopped and saved: step {summary.step} of {summary.total_steps}",
        "nothing_to_do": f"already finished: step {summary.step} of {summary.total_steps}",
    }
    text = [lines[summary.status]]
    if summary.validation_step is not None:
        text.append(_validation(summary))
    if summary.num_skipped:
        skipped = counted(summary.num_skipped, "step")
        text.append(f"{skipped} without an update: the loss or gradient was not finite")
    if summary.wall_time_s > 0:
        rate = summary.num_tokens / summary.wall_time_s
        text.append(
            f"{summary.num_tokens} tokens in {summary.wall_time_s:.1f} s ({rate:.0f} per second)"
        )
    if summary.status == "stopped":
        text.append(f"resume:   sftctl resume {where}")
    else:
        text.append(f"chat:     sftctl chat {where}")
        text.append(f"export:   sftctl export {where} --output DIR")
    text.append(f"inspect:  sftctl inspect-ckpt {where}")
    return Text("\n".join(text))


def _validation(summary: RunSummary) -> str:
    """The first and the last validation loss, and the step of the last."""
    first, last = summary.first_validation_loss, summary.validation_loss
    if first is None or last is None or not (math.isfinite(first) and math.isfinite(last)):
        return (
            f"validation loss {_loss(first)} -> {_loss(last)} is not finite; look at the weights: "
            f"sftctl inspect-ckpt {summary.run_dir} --tensors"
        )
    if summary.validation_step == 0:
        return f"validation loss {first:.4f} before the first step, not measured since"
    later = summary.validation_step != summary.step
    when = f", at step {summary.validation_step}" if later else ""
    return f"validation loss {first:.4f} -> {last:.4f} (x {last / first:.2f}){when}"


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"
