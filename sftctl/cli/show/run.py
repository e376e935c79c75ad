"""The lines that `train` and `resume` print at the end of a run."""

import math

from rich.console import RenderableType

from sftctl.cli.show.output import text_lines
from sftctl.metrics import RunSummary
from sftctl.words import counted, in_shell


def run_summary(summary: RunSummary, is_adapter: bool = False) -> RenderableType:
    """How a run ended, and the commands to type next. `is_adapter`: the run trained an adapter."""
    where = in_shell(summary.run_dir)
    lines = {
        "finished": f"finished: step {summary.step} of {summary.total_steps}",
        "stopped": f"stopped and saved: step {summary.step} of {summary.total_steps}",
        "nothing_to_do": f"already finished: step {summary.step} of {summary.total_steps}",
    }
    text = [lines[summary.status]]
    if summary.ended_early is not None:
        text.append(f"{summary.ended_early}; to train longer, raise it in {where}/config.toml")
    if summary.validation_step is not None:
        text.append(_validation(summary))
    elif summary.loss is not None:
        no_set = "; there is no validation set" if summary.status == "finished" else ""
        text.append(f"loss {summary.loss:.4f} in the last step{no_set}")
    if summary.final_step is not None and summary.final_step != summary.step:
        text.append(_final(summary))
    if summary.num_skipped:
        skipped = counted(summary.num_skipped, "step")
        text.append(f"{skipped} without an update: the loss or gradient was not finite")
    if summary.training_time_s > 0:  # without the time of evaluations and saves
        seconds = summary.training_time_s
        rate = summary.num_tokens / seconds
        text.append(f"{summary.num_tokens} tokens in {seconds:.1f} s ({rate:.0f} per second)")
    if summary.status == "stopped":
        text.append(f"resume:   sftctl resume {where}")
    else:
        text.append(f"chat:     sftctl chat {where}")
        text.append(f"export:   sftctl export {where}{' --merge' if is_adapter else ''}")
    text.append(f"inspect:  sftctl inspect-ckpt {where}")
    text.append(f"report:   sftctl report {where}")
    if summary.to_train_longer is not None:
        text.append(f"longer:   sftctl resume {where} {summary.to_train_longer}")
    return text_lines(text)


def _validation(summary: RunSummary) -> str:
    """The first and the last validation loss, and the step of the last evaluation."""
    first, last = summary.first_validation_loss, summary.validation_loss
    if first is None or last is None or not (math.isfinite(first) and math.isfinite(last)):
        return (
            f"validation loss {_loss(first)} -> {_loss(last)} is not finite; look at the weights: "
            f"sftctl inspect-ckpt {in_shell(summary.run_dir)} --tensors"
        )
    if summary.validation_step == 0:
        return f"validation loss {first:.4f} before the first step, not measured since"
    later = summary.validation_step != summary.step
    when = f", at step {summary.validation_step}" if later else ""
    return f"validation loss {first:.4f} -> {last:.4f} (x {last / first:.2f}){when}"


def _final(summary: RunSummary) -> str:
    """The step of `final/`, and the reason if it is not the last step."""
    text = f"final/ is step {summary.final_step}"
    if summary.final_step != summary.best_step:
        return f"{text}: the best of the existing checkpoints"
    return f"{text}: the best {summary.best_of}, {_loss(summary.best)}"


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"
