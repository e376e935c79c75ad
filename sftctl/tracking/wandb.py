"""Weights & Biases: the only import of wandb, and only when a run asks for it."""

from pathlib import Path
from typing import Any, Literal

from sftctl import environment
from sftctl.errors import ConfigError
from sftctl.metrics import StepMetrics

INIT_TIMEOUT_S = 20
"""Patience with a service that can't be reached, in place of W&B's 90 seconds."""

_SAMPLE_COLUMNS = ["step", "number", "prompt", "reply", "reference"]
_LOGIN_HINT = "log in with `wandb login`, set WANDB_MODE=offline, or leave out --wandb"


class WandbTracker:
    """One W&B run under one id, however many sessions it takes; WANDB_MODE=offline works.

    Not being logged in is a ConfigError at once. With a service that can't be reached within
    INIT_TIMEOUT_S (or WANDB_INIT_TIMEOUT), the run is logged offline and `warning` says so. After a
    crash W&B ignores steps that it has seen: they were the same.
    """

    warning: str | None = None
    """What went wrong at the start without ending it."""

    def __init__(
        self,
        run_dir: Path,
        project: str,
        run_id: str,
        config: dict[str, Any],
        *,
        resumed: bool,
        model: Path | None = None,
    ) -> None:
        """`model` is a folder to upload as an artifact when the run is finished."""
        import wandb

        self._wandb, self._model, self._run_id = wandb, model, run_id
        self._samples: list[list[object]] = []  # rows of a table that grows with each evaluation
        self._sampled_at: int | None = None  # the step of rows that are not logged yet
        settings = wandb.Settings(silent=True, console="off")  # stdout and stderr stay ours
        if not environment.is_set("WANDB_INIT_TIMEOUT"):
            settings.init_timeout = INIT_TIMEOUT_S

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
            message = f"tracking.wandb: {_first_line(error)}"
            raise ConfigError(message, hint=_LOGIN_HINT) from error
        except wandb.errors.CommError as error:
            problem = f"W&B can't be reached ({_first_line(error)}); logging offline"
            advice = f"upload later with: wandb sync {run_dir}/wandb/offline-run-*"
            self.warning = f"{problem}, {advice}"
            wandb.teardown()  # the failed attempt still holds the id
            self._run = start(mode="offline")
        self._exit_code = 1  # until the run says how it ended

    def log(self, metrics: StepMetrics) -> None:
        self._log_samples()
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
        if name == "sample":
            row = {"step": step} | fields
            self._samples.append([row[column] for column in _SAMPLE_COLUMNS])
            self._sampled_at = step
        if name in ("finished", "stopped"):
            self._exit_code = 0
        if name == "finished" and self._model is not None:
            artifact = self._wandb.Artifact(f"model-{self._run_id}", type="model")
            artifact.add_dir(str(self._model))
            self._run.log_artifact(artifact)

    def close(self) -> None:
        try:
            self._log_samples()
        finally:
            self._run.finish(exit_code=self._exit_code)

    def _log_samples(self) -> None:
        """All samples of this session as one table, once an evaluation has told its last."""
        if self._sampled_at is None:
            return
        table = self._wandb.Table(columns=_SAMPLE_COLUMNS, data=self._samples)
        self._run.log({"validation/samples": table}, step=self._sampled_at)
        self._sampled_at = None


def require_login() -> None:
    """ConfigError where W&B would ask for a login; nobody is asked, and offline needs none."""
    import wandb

    settings = wandb.Settings(silent=True)
    try:
        is_online = wandb.setup(settings).settings.mode == "online"
    except ValueError as refusal:  # of a WANDB_… variable
        reason = " ".join(line.strip() for line in str(refusal).splitlines()[1:3])
        raise ConfigError(
            f"W&B refuses a setting: {reason}", hint="look at the WANDB_… variables that are set"
        ) from refusal
    if is_online and not wandb.login(prompt=False, verify=False):
        raise ConfigError("tracking.wandb: not logged in", hint=_LOGIN_HINT)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
