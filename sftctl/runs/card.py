"""The model card of an exported model: how it was trained, from the records of its run."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sftctl import __version__
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.sealed import read_seal
from sftctl.config.evaluation import Goal
from sftctl.config.load import config_from_dict, config_to_toml
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.data.storage.joined import open_stores
from sftctl.errors import CheckpointError, DataError
from sftctl.jsonio import JSONDecodeError, dump_canonical, read_lines
from sftctl.model.presets import is_preset
from sftctl.runs.choosing import goal_in
from sftctl.runs.directory import RunDir
from sftctl.words import counted

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")
model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY")
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

or `sftctl chat THIS_DIRECTORY`."""

_USE_ADAPTER = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")
model = AutoPeftModelForCausalLM.from_pretrained("THIS_DIRECTORY")
```

or `sftctl chat THIS_DIRECTORY`; `sftctl export THIS_DIRECTORY --merge --output MODEL` makes a plain
model. It fits only the base that it was trained on, which adapter_config.json names."""

_USE_GGUF = """```
llama-cli -m model.gguf -cnv              # llama.cpp
ollama create NAME -f Modelfile           # Ollama; then: ollama run NAME
```"""

_USES = {"hf": _USE, "adapter": _USE_ADAPTER, "gguf": _USE_GGUF}
_LIBRARIES = {"hf": "transformers", "adapter": "peft", "gguf": "gguf"}
_KINDS = {
    "hf": "A language model",
    "adapter": "An adapter of a language model",
    "gguf": "A language model",
}


def model_card(
    run: RunDir, manifest: CheckpointManifest | None, dtype: str, kind: str = "hf"
) -> str:
    """The text of README.md. `manifest` is that of the exported checkpoint, or None.

    `kind` is the format of the weights: hf, adapter or gguf.
    """
    config = config_from_dict(manifest.config) if manifest is not None else run.config()
    name = run.path.absolute().name
    started = started_event(run.path)
    parts = [
        _front_matter(config, _LIBRARIES[kind]),
        f"# {_escaped(name)}",
        f"{_KINDS[kind]} that was fine-tuned on conversations by sftctl {__version__}, exported "
        f"in {dtype}. It uses the chat template in this "
        f"{'file' if kind == 'gguf' else 'directory'}.",
        "## Use",
        _USES[kind],
        "## Training",
        _table(_training(config, manifest, run.path)),
    ]
    data = _data(started)
    if data:
        parts += ["## Data", _table(data)]
    if manifest is not None:
        versions = manifest.versions.items()
        parts += ["## Versions", _table((key, str(value)) for key, value in versions)]
    parts += [
        "## Train it again",
        "Save this as `run.toml` and run `sftctl train run.toml`:",
        f"```toml\n{config_to_toml(config).strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: RunConfig, library: str) -> str:
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [sft, sftctl]"]
    name = config.model.name
    if not is_preset(name) and not Path(name).is_absolute():
        lines.insert(0, f"base_model: {dump_canonical(name).decode()}")
    return "\n".join(["---", *lines, "---"])


def _training(
    config: RunConfig, manifest: CheckpointManifest | None, run: Path
) -> Iterable[tuple[str, str]]:
    name = config.model.name
    kind = "preset, from random weights" if is_preset(name) else "pretrained"
    yield "base model", f"{Path(name).name if Path(name).is_absolute() else name} ({kind})"
    optim, train = config.optim, config.train
    if manifest is not None:
        yield "steps", f"{manifest.step:,} of {manifest.total_steps:,}"
        epochs = manifest.epoch + manifest.step_in_epoch / max(1, manifest.steps_per_epoch)
        yield "epochs", f"{epochs:.3g} of {train.epochs}"
        yield "examples seen", f"{manifest.examples_seen:,}"
        yield "tokens seen", f"{manifest.tokens_seen:,}"
        loss = _loss_at(run, manifest.step)
        if loss is not None:
            yield "training loss of the last step", loss
        seen = manifest.validation or {}
        for which in ("first", "best", "last"):
            if which in seen:
                what = _chosen_by(manifest) if which == "best" else "validation loss"
                yield f"{what}, {which}", _number(seen[which])
        if (chosen := _choice(run, manifest)) is not None:
            yield "chosen", chosen
    yield "examples per step", str(train.global_batch_size)
    yield (
        "learning rate",
        f"{optim.learning_rate}, warm-up {counted(optim.warmup_steps, 'step')}, {optim.schedule}",
    )
    yield "weight decay", str(optim.weight_decay)
    yield "gradient clip", str(optim.grad_clip)
    mixed = "" if train.dtype == "float32" else f"computed in {train.dtype}, "
    yield "precision", f"{mixed}float32 weights"
    yield "seed", str(train.seed)


def _choice(run: Path, manifest: CheckpointManifest) -> str | None:
    """Why the weights are not from the run's last step; None if they are, or if unknown."""
    with suppress(CheckpointError):
        seal = read_seal(RunDir(run).final)
        if seal.step == manifest.step < seal.last_step:
            return (
                f"the checkpoint with the best {_chosen_by(manifest)}, of step {seal.step:,}; the "
                f"run trained to step {seal.last_step:,}"
            )
    return None


def _chosen_by(manifest: CheckpointManifest) -> str:
    """What chose the best step, such as `validation loss` or `token_accuracy of chat`."""
    return Goal.parsed(goal_in(manifest.validation or {})).shown


def _data(started: dict[str, Any]) -> list[tuple[str, str]]:
    """The counts of the store; [] if the store was moved or changed after the run."""
    try:
        several = started.get("stores")
        store = (
            open_stores(several).manifest if several else StoreManifest.read(Path(started["store"]))
        )
    except (KeyError, DataError):
        return []
    if store.fingerprint != started.get("data_fingerprint"):
        return []
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in store.rows_dropped.items() if n)
    return [
        ("sources", ", ".join(Path(source.file).name for source in store.sources)),
        ("rows read", f"{store.rows_read:,}"),
        ("rows kept", f"{store.rows_kept:,} ({store.rows_truncated:,} truncated)"),
        ("rows dropped", dropped or "none"),
        ("duplicate rows", f"{store.rows_duplicated:,}"),
        ("examples", f"{store.num_examples:,}"),
        ("validation examples", f"{store.num_validation_examples:,}"),
        ("tokens", f"{store.num_tokens:,}"),
        ("target tokens", f"{store.num_target_tokens:,} (trained on: {store.train_on})"),
        ("longest example allowed", f"{store.max_seq_len:,} tokens"),
        ("fingerprint", store.fingerprint),
    ]


def started_event(run: Path) -> dict[str, Any]:
    """The `started` event of the run; {} if it can't be read."""
    with suppress(OSError, JSONDecodeError, StopIteration):
        lines = read_lines(run / "events.jsonl")
        return next(line for line in lines if line.get("event") == "started")
    return {}


def _loss_at(run: Path, step: int) -> str | None:
    """The training loss of a step; None if it is not recorded."""
    with suppress(OSError, JSONDecodeError, StopIteration):
        lines = read_lines(run / "metrics.jsonl")
        return _number(next(line["loss"] for line in lines if line.get("step") == step))
    return None


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"  # null in JSON


def _table(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {_escaped(v)} |" for k, v in pairs)])


def _escaped(text: str) -> str:
    """Text on one line, with Markdown's special characters escaped."""
    special = "\\`*_[]<>#|"
    return "".join(f"\\{char}" if char in special else char for char in " ".join(text.split()))
