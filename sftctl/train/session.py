"""Session: a run that is ready to train, new or continued."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sftctl.checkpoint.directory import abandon_after, clean_leftovers, require_room
from sftctl.checkpoint.load import load_tensors
from sftctl.config.schema import RunConfig
from sftctl.data.loader import StepLoader, loader_settings
from sftctl.data.microbatch import collate
from sftctl.data.plan import steps_per_epoch
from sftctl.data.step_shape import StepShape, step_shape
from sftctl.disk import remove_folder
from sftctl.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.model.load import load_architecture, load_model, save_architecture
from sftctl.model.loss import check_head
from sftctl.runs.differences import threads_for
from sftctl.runs.directory import RunDir, create_run
from sftctl.train.engine.build import build_state, checkpoint_bytes
from sftctl.train.engine.state import TrainState, numbers_in
from sftctl.train.engine.step import StepRules
from sftctl.train.preflight.findings import refuse_errors
from sftctl.train.preflight.inputs import Inputs, open_inputs
from sftctl.train.preflight.proposal import propose
from sftctl.train.preflight.rehearsal import rehearse
from sftctl.train.resume import ResumePlan, ResumeRequest, choose_checkpoint, plan_resume
from sftctl.train.stop import StopRequest
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is ready to train: everything that the loop needs."""

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

    @property
    def rules(self) -> StepRules:
        """What an update depends on, apart from the state and the batch."""
        train = self.config.train
        return StepRules(
            self.config.optim,
            train.seed,
            self.total_steps,
            self.steps_per_epoch,
            skips_nonfinite=train.on_nonfinite == "skip",
        )

    @property
    def is_complete(self) -> bool:
        """Whether every step, the last validation and the final model are done."""
        validated = self.inputs.validation is None or self.state.progress.is_validated
        trained = self.state.progress.step >= self.total_steps
        return trained and validated and self.run.final.is_dir()

    def loader(self) -> StepLoader:
        """The loader of this run on this rank."""
        settings = loader_settings(self.config.data, self.world.device.type)
        return StepLoader(self.inputs.train, self.shape, settings)


@contextmanager
def new_session(config: RunConfig, world: World, stop: StopRequest) -> Iterator[Session]:
    """A new run. Its directory is created last, so that an error leaves nothing behind."""
    proposal = propose(config, world, stop)
    refuse_errors(proposal.findings)
    config, inputs, path = proposal.config, proposal.inputs, proposal.path
    model = load_model(config.model.name, inputs.tokenizer, config.train.seed)
    world.on_main(stop.check)
    session = _session(config, world, stop, RunDir(path), inputs, model, None)
    session = replace(session, warnings=(*proposal.warnings, *session.warnings))
    rehearse(session.state, inputs.train, session.shape, world)
    world.on_main(
        lambda: create_run(
            path, config, inputs.tokenizer, lambda folder: save_architecture(model, folder)
        )
    )
    with _locked(session.run, world):
        yield session


@contextmanager
def resumed_session(request: ResumeRequest, world: World, stop: StopRequest) -> Iterator[Session]:
    """A run to continue: the state of its checkpoint, and no later step left on disk."""
    with restored_session(request, world, stop) as session:
        num_bytes = checkpoint_bytes(session.state.loss_module.model)
        keep = session.config.checkpoint.keep
        world.on_main(lambda: require_room(session.run.checkpoints, num_bytes, keep))
        rehearse(session.state, session.inputs.train, session.shape, world)
        world.on_main(lambda: _take_over(session))
        yield session


@contextmanager
def restored_session(
    request: ResumeRequest,
    world: World,
    stop: StopRequest,
    config: RunConfig | None = None,
    *,
    initial: bool = False,
) -> Iterator[Session]:
    """The state of a run's checkpoint, under the run's lock; nothing changes on disk.

    `config` replaces the run's own config.toml. `initial` asks for the state at step 0 of the run
    that led to the checkpoint; NoCheckpoint if its weights can't be loaded.
    """
    run = world.on_main(lambda: RunDir.open(request.run_dir))
    with _locked(run, world):
        config = request.applied_to(config or run.config())
        found = world.on_main(lambda: choose_checkpoint(run, request.step))
        inputs = open_inputs(config, world, stop, found.manifest if found is not None else None)
        ranks = world.world_size
        plan = world.on_main(lambda: plan_resume(run, request, config, found, inputs, ranks))
        if world.is_main and request.announce is not None:
            request.announce(plan, request.allow)
        plan.refuse(request)
        if plan.checkpoint is None or initial:
            model = _initial_model(config, inputs, plan)
        else:
            model = load_architecture(run.model_folder)
        if plan.manifest is not None:
            default = torch.get_num_threads()
            threads = threads_for(plan.manifest, config, world.world_size, default)
            torch.set_num_threads(threads)
        session = _session(config, world, stop, run, inputs, model, plan)
        if not initial:
            _restore(session)
        yield session


def _initial_model(config: RunConfig, inputs: Inputs, plan: ResumePlan) -> "PreTrainedModel":
    try:
        return load_model(config.model.name, inputs.tokenizer, config.train.seed)
    except ConfigError as error:
        if plan.checkpoint is None:
            raise
        raise NoCheckpoint(
            f"{plan.run_dir}: the only checkpoint is {plan.checkpoint.name}, and the model at "
            f"step 0 can't be loaded: {error.message}",
            hint="keep two checkpoints (--keep 2): a replay then starts at the first",
        ) from error


def _session(
    config: RunConfig,
    world: World,
    stop: StopRequest,
    run: RunDir,
    inputs: Inputs,
    model: "PreTrainedModel",
    plan: ResumePlan | None,
) -> Session:
    state = build_state(model, config, world, int(inputs.train.lengths.max()))
    manifest = plan.manifest if plan is not None else None
    shape = step_shape(
        config.train,
        rank=world.rank,
        world_size=world.world_size,
        cut_for_ranks=manifest.cut_for_ranks if manifest else None,
        rows_alone=state.why_rows_alone is not None,
    )
    per_epoch = steps_per_epoch(len(inputs.train), shape.global_batch_size)
    total = config.train.total_steps(per_epoch)
    warnings = tuple(filter(None, (state.rows_warning, _check_head(state, inputs, world))))
    return Session(config, world, stop, run, inputs, state, shape, per_epoch, total, plan, warnings)


def _check_head(state: TrainState, inputs: Inputs, world: World) -> str | None:
    """Let the loss use the head alone if that is right for the shortest example, else warn."""
    shortest = int(inputs.train.lengths.argmin())
    example = collate(inputs.train, (shortest,), 0).to(world.device)
    check = check_head(state.loss_module, example.tensors)
    state.reshard()
    state.loss_module.uses_own_forward = not check.is_plain
    return None if check.is_plain else check.warning


def _restore(session: Session) -> None:
    plan, state = session.plan, session.state
    if plan is None or plan.manifest is None or plan.checkpoint is None:
        return
    numbers = numbers_in(plan.manifest)
    is_same_dtype = plan.manifest.dtype == session.config.train.dtype
    restart = set() if is_same_dtype else {"scaler"}  # the scale of another dtype means nothing
    if missing := state.numbers().keys() - numbers.keys() - restart:
        names = ", ".join(sorted(missing))
        raise IncompatibleCheckpoint(f"{plan.checkpoint}: its manifest has no state of {names}")
    load_tensors(plan.checkpoint, state.tensors(), session.world, manifest=plan.manifest)
    state.weights.publish()  # the model computes with copies of what was loaded
    state.load_numbers(numbers)


def _take_over(session: Session) -> None:
    """Make the run directory fit the session: configuration, checkpoints, final model."""
    run, plan = session.run, session.plan
    for folder in (run.path, run.checkpoints):
        clean_leftovers(folder)
    trains = session.state.progress.step < session.total_steps
    if trains and session.config != run.config():
        run.write_config(session.config)
    if plan is not None and plan.manifest is not None:
        abandon_after(run.checkpoints, plan.manifest.step)
    if trains and run.final.is_dir():
        remove_folder(run.final)  # of an earlier end; a checkpoint has its weights


@contextmanager
def _locked(run: RunDir, world: World) -> Iterator[None]:
    if not world.is_main:
        yield
        return
    with run.lock():
        yield
