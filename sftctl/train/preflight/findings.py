"""The checks before a run, at every start and in `sftctl train --dry-run`.

Each function yields findings. The model is built without weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from sftctl.checkpoint.directory import require_room
from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import loader_settings
from sftctl.data.loading.microbatch import Examples
from sftctl.data.loading.needs import shortages
from sftctl.data.manifest import is_prepared
from sftctl.data.plan import steps_per_epoch
from sftctl.data.prepare.notes import accounting, many_dropped, store_notes
from sftctl.data.step_shape import StepShape
from sftctl.errors import ConfigError, SftctlError
from sftctl.machine import Machine, load_warning, multiplies_bfloat16
from sftctl.model.adapter.lora import doubts, has_adapter, lora_config
from sftctl.model.fake import FakeModel
from sftctl.model.load import check_fit
from sftctl.model.presets import is_preset
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.runs.base import start_doubts
from sftctl.runs.directory import RunDir
from sftctl.tracking.services import require_service
from sftctl.train.engine.build import checkpoint_bytes
from sftctl.train.preflight.inputs import Inputs
from sftctl.train.preflight.memory import ESTIMATE_ERROR_RATIO, MemoryEstimate
from sftctl.train.preflight.resolve import PRETRAINED_LEARNING_RATE
from sftctl.words import counted, format_bytes

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and how to fix the problem."""

    level: Level
    subject: str
    what: str
    fix: str | None = None
    error: SftctlError | None = field(default=None, repr=False)  # the error that a run raises

    def to_json(self) -> dict[str, str | None]:
        return {"level": self.level, "subject": self.subject, "what": self.what, "fix": self.fix}

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}" + (f"; {self.fix}" if self.fix else "")


def preflight(
    config: RunConfig,
    path: Path,
    inputs: Inputs,
    fake: FakeModel,
    memory: MemoryEstimate,
    shape: StepShape,
    ranks_here: int,
) -> list[Finding]:
    """All findings about a new run in `path`. `ranks_here`: the number of ranks on this machine."""
    return [
        *_data(config, inputs, fake),
        *_sources(inputs),
        *_schedule(config, inputs),
        device_finding(fake.device.type, config.train.dtype, multiplies_bfloat16()),
        *_adapter(config, fake),
        *memory_findings(memory, fake.num_parameters),
        *rank_findings(ranks_here, fake.device.type, Machine.here()),
        *_load(),
        *_disk(config, path, fake),
        *loader_findings(config, inputs.train, shape, Machine.here(), ranks_here),
        *_services(config),
    ]


def refuse_errors(findings: list[Finding]) -> None:
    """Raise the errors among the findings as one error, with the exit code of the first."""
    errors = [finding.error for finding in findings if finding.error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        hints = [error.hint for error in errors if error.hint]
        message = "; ".join(error.message for error in errors)
        raise type(errors[0])(message, "; ".join(hints) or None)


def _data(config: RunConfig, inputs: Inputs, fake: FakeModel) -> Iterator[Finding]:
    manifest, longest = inputs.train.manifest, int(inputs.train.lengths.max())
    rows = fake.model.get_input_embeddings().num_embeddings
    yield _checked(
        "fit",
        lambda: check_fit(fake.model, inputs.tokenizer, longest),
        f"{inputs.tokenizer.vocab_size:,} ids for {rows:,} rows of the model's embeddings; longest "
        f"example {longest:,} tokens",
    )
    if config.data.path is not None and not is_prepared(config.data.path):
        yield Finding("ok", "rows", accounting(manifest, inputs.train.path))
    if dropped := many_dropped(manifest):
        see = inputs.train.path / "ledger.jsonl"
        yield Finding("warning", "rows", dropped, f"{see} lists them")
    yield from (Finding("warning", subject, what) for subject, what in store_notes(manifest))
    name = config.model.tokenizer or config.model.name
    if not is_preset(name) and not name.endswith(".gguf"):  # reading a GGUF takes seconds
        tokenizer = load_tokenizer(name, template_required=False)
        if not tokenizer.hf.chat_template:
            yield Finding("ok", "template", "the model has none; the run uses that of the data")
        elif tokenizer.template_hash == manifest.template_hash:
            yield Finding("ok", "template", "the data was rendered with the model's own template")
        else:
            yield Finding(
                "warning",
                "template",
                "the data was rendered with a template that is not the model's own",
                "if that is not intended, prepare the data again: the run uses the data's template",
            )


def _sources(inputs: Inputs) -> Iterator[Finding]:
    """Sources of a mixture whose weight is so small that no example is trained in an epoch."""
    for source in inputs.mixture.sources if inputs.mixture is not None else ():
        if source.weight > 0 and source.num_examples > 0 and not source.num_planned:
            yield Finding(
                "warning",
                f"source {source.name}",
                f"weight {source.weight:g} of {counted(source.num_examples, 'example')} is less "
                "than one in an epoch: it is never trained",
                f"weight {1 / source.num_examples:.2g} trains one in each epoch, weight 0 none",
            )


def _adapter(config: RunConfig, fake: FakeModel) -> Iterator[Finding]:
    if not has_adapter(fake.model):
        return
    trained = sum(p.numel() for p in fake.model.parameters() if p.requires_grad)
    targets = ", ".join(sorted(lora_config(fake.model).target_modules or ()))
    form = "" if config.adapter.quantize is None else f", its base in {config.adapter.quantize}"
    yield Finding(
        "ok",
        "adapter",
        f"LoRA of rank {config.adapter.rank} on {targets}{form}: {trained:,} of "
        f"{fake.num_parameters:,} parameters are trained, at a learning rate of "
        f"{config.optim.learning_rate:g} (full fine-tuning: {PRETRAINED_LEARNING_RATE:g})",
    )
    lines = (*doubts(fake.model), *start_doubts(config.adapter, config.model.name))
    yield from (Finding("warning", "adapter", line) for line in lines)


def _schedule(config: RunConfig, inputs: Inputs) -> Iterator[Finding]:
    batch, warmup = config.train.global_batch_size, config.optim.warmup_steps
    total = config.train.total_steps(steps_per_epoch(inputs.num_planned, batch))
    if warmup > total:
        yield Finding(
            "warning",
            "schedule",
            f"{counted(warmup, 'step')} of warm-up in a run of {total}: the peak is never reached",
            "lower optim.warmup_steps",
        )
    if config.optim.learning_rate == 0:
        what = "the learning rate is 0: no weight will change"
        yield Finding("warning", "schedule", what, "leave --learning-rate out for the usual one")
    if config.train.eval_interval and not inputs.sets:
        yield Finding(
            "warning",
            "validation",
            f"every {counted(config.train.eval_interval, 'step')}, but there is no validation data",
            "data.val_fraction = 0.05 holds rows out; for a store: prepare-data --val-fraction",
        )
    if batch > inputs.num_planned:
        yield Finding(
            "warning",
            "schedule",
            f"a step takes {batch} examples, an epoch has {inputs.num_planned}: one step per epoch",
            "lower --batch-size or --accumulation-steps",
        )


def device_finding(device: str, dtype: str, has_bfloat16: bool | None) -> Finding:
    """Whether the device is fast in this dtype.

    The factors come from https://github.com/pytorch/pytorch/issues/146508.
    """
    what = f"{device} with {dtype}"
    if device != "cpu" or dtype == "float32" or (dtype == "bfloat16" and has_bfloat16):
        return Finding("ok", "device", what)
    if dtype == "bfloat16" and has_bfloat16 is False:
        what += ": this processor has no bfloat16 products and can be 44 to 499 times slower"
    else:
        what += ": few processors compute it faster than float32"
    return Finding("warning", "device", what, "compare a few steps with --dtype float32")


def memory_findings(memory: MemoryEstimate, num_parameters: int) -> Iterator[Finding]:
    """Whether the estimate fits into the available memory."""
    total, available = memory.total_bytes, memory.available_bytes
    what = (
        f"about {format_bytes(total)} at the largest micro-batch "
        f"({memory.row_tokens:,} tokens), within {ESTIMATE_ERROR_RATIO:.0%}"
    )
    if memory.activations_bytes is None:
        what = f"{format_bytes(total)}, and what a pass over {memory.row_tokens:,} tokens keeps"
    if available is None:
        yield Finding("ok", "memory", f"{what}; the free memory is unknown here")
        return
    what = f"{what}; {format_bytes(available)} are available"
    if memory.certain_bytes > available:
        reason = f"too little for the training of {num_parameters:,} parameters: "
        error = ConfigError(
            f"memory: {reason}weights, gradients and optimizer take "
            f"{format_bytes(memory.certain_bytes)}, {format_bytes(available)} are available",
            hint="a smaller model, or --strategy fsdp over more ranks or nodes",
        )
        yield Finding("error", "memory", what, error.hint, error)
    elif total > available:
        fix = "lower --micro-batch-tokens; the update stays the same"
        yield Finding("warning", "memory", what, fix)
    else:
        yield Finding("ok", "memory", what)


def _disk(config: RunConfig, path: Path, fake: FakeModel) -> Iterator[Finding]:
    num_bytes, keep = checkpoint_bytes(fake.model), config.checkpoint.keep + config.keep_best
    root = RunDir(path).checkpoints
    yield _checked(
        "disk",
        lambda: require_room(root, num_bytes, keep),
        f"{counted(keep, 'checkpoint')} of {format_bytes(num_bytes)}"
        " and one more while it is saved fit",
    )


def rank_findings(ranks_here: int, device: str, machine: Machine) -> Iterator[Finding]:
    """Whether each rank on a CPU has a core of its own."""
    if device == "cpu" and ranks_here > machine.usable_cores:
        cores = counted(machine.usable_cores, "usable core")
        what = f"{counted(ranks_here, 'rank')} on {cores}: they wait for each other"
        yield Finding("warning", "ranks", what, f"--nproc-per-node {machine.usable_cores}")


def _load() -> Iterator[Finding]:
    if (busy := load_warning()) is not None:
        yield Finding("warning", "machine", busy)


def loader_findings(
    config: RunConfig, store: Examples, shape: StepShape, machine: Machine, ranks_here: int
) -> Iterator[Finding]:
    """Limits of the machine that the loader processes exceed. Nothing without loader processes."""
    # "cpu", because pinned memory does not count for these limits.
    settings = loader_settings(config.data, "cpu")
    if not settings.num_workers:
        return
    processes = counted(settings.num_workers, "loader process", "loader processes")
    problems = [
        (f"{short.needed} for {processes} per rank, {short.available}", short.fix)
        for short in shortages(store, shape, settings, machine, ranks_here)
    ]
    if settings.num_workers > machine.usable_cores:
        cores = counted(machine.usable_cores, "usable core")
        fewer = "`sftctl bench-loader` finds the best number"
        problems.append((f"{cores} for {processes} per rank", fewer))
    for what, fix in problems:
        yield Finding("warning", "loader", what, fix)
    if not problems:
        yield Finding("ok", "loader", f"{processes} per rank")


def _services(config: RunConfig) -> Iterator[Finding]:
    for name in config.tracking.services:
        fine = "logged in, or offline" if name == "wandb" else "installed"
        yield _checked(name, partial(require_service, name), fine)


def _checked(subject: str, check: Callable[[], None], fine: str) -> Finding:
    """Turn the error that `check` raises into a finding.

    Without an error, the finding says `fine`.
    """
    try:
        check()
    except SftctlError as error:
        return Finding("error", subject, error.message, error.hint, error)
    return Finding("ok", subject, fine)
