"""Open a trained model from a run, a checkpoint, or a Hugging Face directory."""

from pathlib import Path
from typing import Any

from sftctl.checkpoint.directory import newest_good, problems_of
from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.checkpoint.load import load_tensors
from sftctl.errors import CorruptCheckpoint, NoCheckpoint
from sftctl.model.load import load_architecture, load_pretrained
from sftctl.model.tokenizer import HFTokenizer, load_tokenizer
from sftctl.train.rundir import RunDir
from sftctl.world import start_world


def open_trained(path: Path) -> tuple[Any, HFTokenizer]:
    """The model in float32 and its tokenizer; a run gives `final/`, or its newest checkpoint."""
    if (path / "run.json").is_file():
        run = RunDir.open(path)
        if run.final.is_dir():
            return _hugging_face(run.final)
        checkpoint, _ = newest_good(run.checkpoints, None)
        return _checkpoint(run, checkpoint)
    if (path / MANIFEST_NAME).is_file() and (path.parent.parent / "run.json").is_file():
        problems = problems_of(path, verify=True)
        if problems:
            raise CorruptCheckpoint(f"{path}: {'; '.join(problems)}")
        return _checkpoint(RunDir.open(path.parent.parent), path)
    if (path / "config.json").is_file():
        return _hugging_face(path)
    raise NoCheckpoint(f"{path}: neither a run, nor a checkpoint of one, nor a model directory")


def _hugging_face(folder: Path) -> tuple[Any, HFTokenizer]:
    return load_pretrained(str(folder)), load_tokenizer(str(folder))


def _checkpoint(run: RunDir, checkpoint: Path) -> tuple[Any, HFTokenizer]:
    model = load_architecture(run.model_folder)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    with start_world("cpu") as world:
        load_tensors(checkpoint, tensors, world, prefix="model.")
    return model, load_tokenizer(str(run.model_folder))
