"""Session: a new or continued run with everything that its training loop needs."""

from dataclasses import dataclass, field

from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import StepLoader, loader_settings
from sftctl.data.step_shape import StepShape
from sftctl.runs.answers import Questions
from sftctl.runs.choosing import is_out_of_patience
from sftctl.runs.directory import RunDir
from sftctl.train.engine.state import TrainState
from sftctl.train.engine.step import StepRules
from sftctl.train.preflight.inputs import Inputs
from sftctl.train.resume import ResumePlan
from sftctl.train.stop import StopRequest
from sftctl.world import World


@dataclass(frozen=True, slots=True)
class Session:
    """One run, ready for the training loop."""

    config: RunConfig
    world: World
    stop: StopRequest
    run: RunDir
    inputs: Inputs
    state: TrainState
    shape: StepShape
    steps_per_epoch: int
    total_steps: int
    plan: ResumePlan | None  # None: a new run
    warnings: tuple[str, ...]
    questions: Questions = field(default_factory=dict)  # for the metrics; {}: no metrics

    @property
    def rules(self) -> StepRules:
        """The settings that an update needs, besides the state and the batch."""
        train = self.config.train
        return StepRules(
            self.config.optim,
            train.seed,
            self.total_steps,
            self.steps_per_epoch,
            skips_nonfinite=train.on_nonfinite == "skip",
            mixture=self.inputs.mixture,
        )

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `train.patience` ends the run at the current step."""
        return is_out_of_patience(self.config.train, self.state.progress.validation)

    @property
    def has_ended(self) -> bool:
        """Whether no step is left to train."""
        return self.state.progress.step >= self.total_steps or self.is_out_of_patience

    @property
    def is_complete(self) -> bool:
        """Whether every step is trained and the final model is written.

        The last checkpoint alone does not show this. It can be older than the last validation, and
        final/ is written after the last validation.
        """
        return self.has_ended and self.run.final.is_dir()

    def loader(self) -> StepLoader:
        """The loader of this run on this rank."""
        settings = loader_settings(self.config.data, self.world.device.type)
        return StepLoader(self.inputs.train, self.shape, settings, self.inputs.mixture)
