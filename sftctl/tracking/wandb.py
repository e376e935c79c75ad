"""Weights & Biases: the only import of wandb, and only when a run asks for it."""

import warnings
from pathlib import Path
from typing import Any, Literal

from sftctl.errors import ConfigError
from sftctl.metrics import StepMetrics


class WandbTracker:
    """One W&B run under one id, however many sessions it takes; WANDB_MODE=offline works.

    Not being logged in is a ConfigError at once. A service that can't be reached is a warning, and
    the run is logged offline. After a crash W&B ignores steps that it has seen: they were the same.
    """

    def __init__(
        self, run_dir: Path, project: str, run_id: str, config: dict[str, Any], resumed: bool
    ) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off")  # stdout and stderr stay ours

        def start(mode: Literal["offline"] | None) -> Any:
            return wandb.init(
                project=project,
                id=run_id,
                name=run_dir.name,
                dir=run_dir,
                config=config,
                allow_val_change=resumed,  # a resumed run may have grown its epochs
                resume="allow",
                reinit="create_new",  # a run of the caller's own is left alone
                mode=mode,
                settings=settings,
            )

        try:
            self._run = start(mode=None)
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            hint = "log in with `wandb login`, set WANDB_MODE=offline, or leave out --wandb"
            raise ConfigError(f"tracking.wandb: {_first_line(error)}", hint=hint) from error
        except wandb.errors.CommError as error:
            problem = f"W&B can't be reached ({_first_line(error)}); logging offline"
            advice = f"upload later with: wandb sync {run_dir}/wandb/offline-run-*"
            warnings.warn(f"{problem}, {advice}", stacklevel=2)
            wandb.teardown()  # the failed attempt still holds the id
            self._run = start(mode="offline")
        self._exit_code = 1  # until the run says how it ended

    def log(self, metrics: StepMetrics) -> None:
        values = {
            "train/loss": metrics.loss,
            "train/grad_norm": metrics.grad_norm,
            "train/learning_rate": metrics.learning_rate,
            "train/epoch": metrics.epoch,
            "train/tokens_per_s": metrics.tokens_per_s,
            "train/step_time_s": metrics.step_time_s,
            "train/peak_memory_bytes": metrics.peak_memory_bytes,
            "data/num_tokens": metrics.num_tokens,
            "data/num_target_tokens": metrics.num_target_tokens,
            "data/num_padding_tokens": metrics.num_padding_tokens,
            "data/wait_s": metrics.data_wait_s,
        }
        self._run.log(values, step=metrics.step)

    def event(self, name: str, step: int, **fields: object) -> None:
        if name == "evaluation":
            self._run.log({"validation/loss": fields["validation_loss"]}, step=step)
        if name in ("finished", "stopped"):
            self._exit_code = 0

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
