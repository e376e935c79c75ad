"""Open a session: a new run, or a run that continues from a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sftctl.checkpoint.directory import abandon_after, clean_leftovers, require_room
from sftctl.checkpoint.load import load_tensors, load_weights
from sftctl.config.schema import RunConfig
from sftctl.data.plan import steps_per_epoch
from sftctl.data.step_shape import step_shape
from sftctl.data.storage.joined import Store
from sftctl.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.folders import remove_folder
from sftctl.model.adapter.base import initial_model
from sftctl.model.adapter.lora import saved_tensors
from sftctl.model.load import load_architecture, save_architecture
from sftctl.runs.base import base_location, require_same_start
from sftctl.runs.choosing import require_validation
from sftctl.runs.differences import threads_for
from sftctl.runs.directory import RunDir, create_run
from sftctl.tracking import status
from sftctl.train.answers.questions import keep_questions, require_metrics, with_questions
from sftctl.train.engine.build import build_state, choose_head
from sftctl.train.engine.state import numbers_in
from sftctl.train.preflight.findings import refuse_errors
from sftctl.train.preflight.inputs import Inputs, open_inputs
from sftctl.train.preflight.proposal import propose
from sftctl.train.preflight.rehearsal import rehearse
from sftctl.train.resume import ResumePlan, ResumeRequest, choose_checkpoint, plan_resume
from sftctl.train.session import Session
from sftctl.train.stop import StopRequest
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Verify = Callable[[Store], None]
"""Verifies the store on every rank before anything else is loaded; raises DataError."""


@contextmanager
def new_session(
    config: RunConfig, world: World, stop: StopRequest, verify: Verify | None = None
) -> Iterator[Session]:
    """A new run. Its directory is created last, so an earlier error leaves no directory."""
    proposal = propose(config, world, stop)
    refuse_errors(proposal.findings)
    config, inputs, path = proposal.config, proposal.inputs, proposal.path
    if verify is not None:
        verify(inputs.train)
    about_model = list[str]()
    status.doing(f"loading {config.model.name}")
    model = initial_model(config, inputs.tokenizer, about_model.append)
    world.on_main(stop.check)
    status.doing("checking the model")
    session = _session(config, world, stop, RunDir(path), inputs, model, None)
    told = dict.fromkeys((*proposal.warnings, *about_model))  # both may give the same warning
    session = replace(session, warnings=(*told, *session.warnings))
    session = with_questions(session, None)
    _rehearse(session)
    world.on_main(
        lambda: create_run(
            path, config, inputs.tokenizer, lambda folder: save_architecture(model, folder)
        )
    )
    with _locked(session.run, world):
        world.on_main(lambda: keep_questions(session))
        yield session


def _rehearse(session: Session) -> None:
    """Try the largest micro-batch. This is the last work that a signal ends without a trace."""
    rehearse(session.state, session.inputs.train, session.shape, session.world)
    status.doing("")
    session.world.on_main(session.stop.check)
    session.stop.outlook = _nothing_trained


def _nothing_trained() -> str:
    """The answer to a signal that comes while the run directory is written.

    A signal does not interrupt this work.
    """
    return "the run directory is written first, no step is trained"


@contextmanager
def resumed_session(
    request: ResumeRequest, world: World, stop: StopRequest, verify: Verify | None = None
) -> Iterator[Session]:
    """The session of a run that continues from a checkpoint.

    Checkpoints of later steps are moved into another folder.
    """
    with restored_session(request, world, stop, verify=verify) as session:
        num_bytes = session.state.checkpoint_bytes
        keep = session.config.checkpoint.keep + session.config.keep_best
        world.on_main(lambda: require_room(session.run.checkpoints, num_bytes, keep))
        session = with_questions(session, session.run.path)
        _rehearse(session)
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
    verify: Verify | None = None,
) -> Iterator[Session]:
    """Restore the state of a checkpoint under the run's lock. Nothing changes on disk.

    `config` replaces the run's own config.toml. With `initial`, the state at step 0 of the same run
    is restored instead. Raises NoCheckpoint if the weights of step 0 can't be loaded.
    """
    run = world.on_main(lambda: RunDir.open(request.run_dir))
    with _locked(run, world):
        config = request.applied_to(config or run.resolved_config())
        missing = () if initial else world.on_main(lambda: require_metrics(config))
        found = world.on_main(lambda: choose_checkpoint(run, request.step))
        inputs = open_inputs(config, world, stop, found.manifest if found is not None else None)
        require_validation(config, has_validation=bool(inputs.sets))
        if verify is not None:
            verify(inputs.train)
        ranks = world.world_size
        plan = world.on_main(lambda: plan_resume(run, request, config, found, inputs, ranks))
        if world.is_main and request.announce is not None:
            request.announce(plan, request.allow)
        plan.refuse(request)
        checkpoint = None if initial else plan.checkpoint
        if checkpoint is None or config.adapter.lora:
            model = _initial_model(config, inputs, plan, with_start=checkpoint is None)
        else:
            status.doing("loading the checkpoint")
            model = load_architecture(run.model_folder)
        if checkpoint is not None:
            # Until here the weights are random, and random weights could pass the checks that
            # follow. A damaged checkpoint must also be found before any other fault.
            load_weights(checkpoint, saved_tensors(model), plan.manifest)
        if plan.manifest is not None:
            default = torch.get_num_threads()
            torch.set_num_threads(threads_for(plan.manifest, config, world.world_size, default))
        session = _session(config, world, stop, run, inputs, model, plan)
        about = (f"evaluation.metrics: {one}: not measured" for one in missing)
        session = replace(session, warnings=(*about, *session.warnings))
        if not initial:
            _restore(session)
        yield session


def _initial_model(
    config: RunConfig, inputs: Inputs, plan: ResumePlan, *, with_start: bool
) -> "PreTrainedModel":
    recorded = plan.manifest.base if plan.manifest is not None else None
    if with_start and plan.checkpoint is not None:
        require_same_start(plan.checkpoint, recorded, config.adapter.start)
    try:
        location = base_location(config.model.name, recorded)
        return initial_model(config, inputs.tokenizer, location=location, with_start=with_start)
    except ConfigError as error:
        if plan.checkpoint is None or config.adapter.lora:
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
    per_epoch = steps_per_epoch(inputs.num_planned, shape.global_batch_size)
    total = (plan and plan.total_steps) or config.train.total_steps(per_epoch)
    warnings = tuple(filter(None, (state.rows_warning, choose_head(state, inputs.train, world))))
    return Session(config, world, stop, run, inputs, state, shape, per_epoch, total, plan, warnings)


def _restore(session: Session) -> None:
    plan, state = session.plan, session.state
    if plan is None or plan.manifest is None or plan.checkpoint is None:
        return
    numbers = numbers_in(plan.manifest)
    is_same_dtype = plan.manifest.dtype == session.config.train.dtype
    restart = set() if is_same_dtype else {"scaler"}  # a loss scale suits one dtype only
    if missing := state.numbers().keys() - numbers.keys() - restart:
        what = f"its manifest has no state of {', '.join(sorted(missing))}"
        raise IncompatibleCheckpoint(f"{plan.checkpoint}: {what}")
    model = "model."  # the weights of the model are loaded already
    tensors = {name: t for name, t in state.tensors().items() if not name.startswith(model)}
    load_tensors(plan.checkpoint, tensors, session.world, "", plan.manifest, but_not=model)
    state.load_numbers(numbers)
    if plan.begins_epoch_again:
        state.progress.step_in_epoch = 0


def _take_over(session: Session) -> None:
    """Change the run directory for this session: configuration, checkpoints, final model."""
    run, plan = session.run, session.plan
    keep_questions(session)
    for folder in (run.path, run.checkpoints):
        clean_leftovers(folder)
    if "wandb" in session.config.tracking.services:
        run.require_wandb_run_id()
    # A step will be trained, or the run goes back to an earlier step.
    moves = not session.has_ended or (plan is not None and bool(plan.abandoned))
    if moves and session.config != run.config():
        run.write_config(session.config)
    if (moves or (plan is not None and plan.final_problems)) and run.final.is_dir():
        remove_folder(run.final)  # it is outdated or damaged, and a checkpoint has the weights
    if plan is not None and plan.manifest is not None:
        abandon_after(run.checkpoints, plan.manifest.step)


@contextmanager
def _locked(run: RunDir, world: World) -> Iterator[None]:
    if not world.is_main:
        yield
        return
    with run.lock():
        yield
