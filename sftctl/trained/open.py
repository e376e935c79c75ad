"""Load a trained model from a run, a checkpoint or a Hugging Face directory."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.checkpoint.directory import list_checkpoints, newest_good, problems_of
from sftctl.checkpoint.layout import CheckpointManifest, read_manifest
from sftctl.checkpoint.load import load_weights
from sftctl.errors import CheckpointError, CorruptCheckpoint
from sftctl.model.load import load_architecture, load_pretrained
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.directory import RunDir
from sftctl.trained.checks import kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in float32, its tokenizer, and its origin."""

    model: "PreTrainedModel"
    tokenizer: ChatTokenizer
    run: RunDir | None = None  # None: a model directory
    manifest: CheckpointManifest | None = (
        None  # of the checkpoint with these weights, if there is one
    )


def open_trained(path: Path) -> Trained:
    """The model of `path`. For a run: `final/`, or else its newest checkpoint."""
    kind = kind_of(path)
    if kind == "model":
        return Trained(*_hugging_face(path))
    if kind == "checkpoint":
        if problems := problems_of(path, verify=True):
            raise CorruptCheckpoint(
                f"{path}: {'; '.join(problems)}",
                hint=f"`sftctl inspect-ckpt {path.parent.parent} --verify` shows the good ones",
            )
        return _checkpoint(RunDir.open(path.parent.parent), path, read_manifest(path))
    run = RunDir.open(path)
    if run.final.is_dir():
        return Trained(*_hugging_face(run.final), run, _last_manifest(run))
    found = newest_good(run.checkpoints)
    return _checkpoint(run, found.path, found.manifest)


def _hugging_face(folder: Path) -> "tuple[PreTrainedModel, ChatTokenizer]":
    return load_pretrained(str(folder)), load_tokenizer(str(folder))


def _last_manifest(run: RunDir) -> CheckpointManifest | None:
    """The manifest of the last checkpoint; `final/` was written after it."""
    for checkpoint in list_checkpoints(run.checkpoints)[-1:]:
        with suppress(CheckpointError):
            return read_manifest(checkpoint)
    return None


def _checkpoint(run: RunDir, checkpoint: Path, manifest: CheckpointManifest) -> Trained:
    model = load_architecture(run.model_folder)
    load_weights(checkpoint, model, manifest)
    tokenizer = load_tokenizer(str(run.model_folder))
    return Trained(model, tokenizer, run, manifest)
