"""Weights & Biases. Only this file imports wandb, and only if a run logs to W&B."""

from pathlib import Path
from typing import Any, Literal

from sftctl import environment
from sftctl.errors import ConfigError
from sftctl.metrics import StepMetrics
from sftctl.tracking.values import evaluation_values, step_values

INIT_TIMEOUT_S = 20
"""How long to wait for the service. W&B's default is 90 seconds."""
_OFFLINE_TIMEOUT_S = 600  # offline, only a local process of W&B has to start

_SAMPLE_COLUMNS = ["step", "number", "prompt", "reply", "reference"]
_LOGIN_HINT = "log in with `wandb login`, set WANDB_MODE=offline, or leave out --wandb"


class WandbTracker:
    """Logs all sessions of a run as one W&B run. WANDB_MODE=offline works.

    Raises ConfigError if the user is not logged in. If the service can't be reached within
    INIT_TIMEOUT_S (or WANDB_INIT_TIMEOUT), the run is logged offline, and `warning` has a text. W&B
    ignores steps that are repeated after a crash. They have the same values.
    """

    warning: str | None = None
    """A problem at the start that did not end the run."""

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
        """`model`: a folder to upload as an artifact when the run is finished."""
        import wandb

        self._wandb, self._model, self._run_id = wandb, model, run_id
        self._samples: list[list[object]] = []  # the rows of all samples of this session
        self._sampled_at: int | None = None  # step of the samples that are not logged yet
        settings = wandb.Settings(silent=True, console="off")  # don't capture stdout and stderr
        if not environment.is_set("WANDB_INIT_TIMEOUT"):
            settings.init_timeout = INIT_TIMEOUT_S

        def start(mode: Literal["offline"] | None) -> Any:
            if mode == "offline":
                settings.init_timeout = _OFFLINE_TIMEOUT_S
            return wandb.init(
                project=project,
                id=run_id,
                name=run_dir.name,
                dir=run_dir,
                config=config,
                allow_val_change=resumed,  # a resumed run may have more epochs
                resume="allow",
                reinit="create_new",  # don't touch a W&B run of the caller
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
            wandb.teardown()  # free the run id, which the failed attempt still uses
            self._run = start(mode="offline")
        self._exit_code = 1  # a final event without an error changes this

    def log(self, metrics: StepMetrics) -> None:
        self._log_samples()
        self._run.log(step_values(metrics), step=metrics.step)

    def event(self, name: str, step: int, **fields: object) -> None:
        if name == "evaluation":
            self._run.log(evaluation_values(fields), step=step)
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
        """Log all samples of this session as one table, if there are new ones."""
        if self._sampled_at is None:
            return
        table = self._wandb.Table(columns=_SAMPLE_COLUMNS, data=self._samples)
        self._run.log({"validation/samples": table}, step=self._sampled_at)
        self._sampled_at = None


def require_login() -> None:
    """Raise ConfigError if W&B needs a login. It needs none offline."""
    import wandb

    settings = wandb.Settings(silent=True)
    try:
        is_online = wandb.setup(settings).settings.mode == "online"
    except ValueError as refusal:  # a WANDB_… variable has a bad value
        reason = " ".join(line.strip() for line in str(refusal).splitlines()[1:3])
        raise ConfigError(
            f"W&B refuses a setting: {reason}", hint="correct the WANDB_… environment variables"
        ) from refusal
    if is_online and not wandb.login(prompt=False, verify=False):
        raise ConfigError("tracking.wandb: not logged in", hint=_LOGIN_HINT)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
