"""Load a trained model from a run, a checkpoint or a Hugging Face directory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import GoodCheckpoint, list_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name, read_manifest
from sftctl.checkpoint.load import load_weights
from sftctl.checkpoint.sealed import is_sealed, read_seal
from sftctl.errors import CheckpointError, CorruptCheckpoint
from sftctl.model.adapter.attach import AdapterFile, Attached
from sftctl.model.adapter.needs import is_adapter_folder
from sftctl.model.adapter.save import CONFIG_NAME, WEIGHTS_NAME
from sftctl.model.load import load_architecture, load_pretrained
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.base import Base, require_same_base
from sftctl.runs.card import model_card
from sftctl.runs.directory import RunDir
from sftctl.runs.final import CARD_NAME, last_manifest, problems_of_final, require_sound
from sftctl.runs.origin import of_another_run
from sftctl.tracking import status
from sftctl.trained.checks import kind_of
from sftctl.trained.open_adapter import TOKENIZER_FILES, open_adapter, write_adapter
from sftctl.words import in_shell

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def say_nothing(line: str) -> None:
    """Ignore the line."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, its tokenizer, and where it comes from."""

    model: "PreTrainedModel"
    tokenizer: ChatTokenizer
    run: RunDir | None = None  # None: it comes from a model directory
    manifest: CheckpointManifest | None = None  # of the checkpoint with the same weights, if any
    adapter: Attached | None = None  # if the model has an adapter on it

    def about(self, path: Path) -> str:
        """A line such as `runs/x · SmolLM2-135M · step 8`. `path` is what was opened."""
        parts = [str(self.run.path if self.run is not None else path)]
        if self.run is not None:
            parts.append(Path(self.run.config().model.name).name)
        if self.manifest is not None:
            parts.append(f"step {self.manifest.step}")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the weights are: in a model directory, or in a checkpoint of a run."""

    path: Path
    run: RunDir | None = None
    manifest: CheckpointManifest | None = None
    is_checkpoint: bool = False


def open_trained(
    path: Path,
    tell: Callable[[str], None] = say_nothing,
    chat_template: str | None = None,
    tokenizer: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    on_source: bool = False,
) -> Trained:
    """Load the model of `path`: a run, a checkpoint, or anything that `train --model` can start
    from.

    For a run, this is `final/` or else the newest checkpoint. If `final/` is damaged, the
    checkpoint that it was made from is used. If this checkpoint is damaged too, or if `final/` does
    not belong to the current end of the run, the newest good checkpoint is used. `tell` receives a
    warning in these cases.

    An adapter is put onto its base, which is loaded in `dtype`; other models are float32. A base
    that was in nf4 is dequantized; with `on_source` it has its weights before the quantization.
    `chat_template` (a file, or chatml) replaces the model's own. `tokenizer` is for a model without
    one (a .pth file of MiniMind).
    """
    status.doing(f"checking {path}")
    place = _place_of(path, tell)
    run, manifest = place.run, place.manifest
    status.doing(f"loading {place.path}")
    if place.is_checkpoint and run is not None and manifest is not None and manifest.base is None:
        model = load_architecture(run.model_folder)
        load_weights(place.path, model.state_dict(), manifest)
        return Trained(model, load_tokenizer(str(run.model_folder), chat_template), run, manifest)
    if place.is_checkpoint or is_adapter_folder(place.path):
        recorded = _recorded_base(place)
        base = _base_of_run(place, recorded)
        with _adapter_folder(place) as folder:
            attached, own = open_adapter(
                folder,
                dtype,
                recorded,
                chat_template,
                on_source=on_source,
                where=place.path,
                base=base,
            )
        return Trained(attached.model, own, run, manifest, attached)
    own = load_tokenizer(tokenizer or str(place.path), chat_template)
    return Trained(load_pretrained(str(place.path)), own, run, manifest)


def copy_adapter(path: Path, folder: Path, tell: Callable[[str], None] = say_nothing) -> None:
    """Write the adapter that `open_trained` would open into `folder`, with tokenizer and card."""
    place = _place_of(path, tell)
    with _adapter_folder(place) as found:
        AdapterFile.read(found)  # or ConfigError
        for name in (CONFIG_NAME, WEIGHTS_NAME, *TOKENIZER_FILES, CARD_NAME):
            if (found / name).is_file():
                shutil.copyfile(found / name, folder / name)
    if place.run is not None:
        card = model_card(place.run, place.manifest, "float32", "adapter")
        (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _recorded_base(place: _Place) -> Base | None:
    """The record of an adapter's base: from its checkpoint, or from the manifest of `final/`."""
    if place.manifest is not None:
        return place.manifest.base
    return read_seal(place.path).base if is_sealed(place.path) else None


def _base_of_run(place: _Place, recorded: Base | None) -> str | None:
    """The base that the run's config.toml names now, after a comparison with the recorded base.

    The adapter's own settings name the place where the base was during training. None if the
    adapter is not in a run. IncompatibleCheckpoint if it is another base.
    """
    run = place.run or RunDir(place.path.parent)
    is_in_run = place.run is not None or place.path.name == run.final.name
    if recorded is None or not (is_in_run and run.config_file.is_file() and run.run_file.is_file()):
        return None
    name = run.config().model.name
    require_same_base(place.path, recorded, name, run.config_file)
    return name


@contextmanager
def _adapter_folder(place: _Place) -> Iterator[Path]:
    """The directory of an adapter in peft's format. For a checkpoint, it is temporary."""
    if not place.is_checkpoint or place.run is None or place.manifest is None:
        yield place.path
        return
    with TemporaryDirectory() as folder:
        write_adapter(place.run, place.path, place.manifest, Path(folder))
        yield Path(folder)


def _place_of(path: Path, tell: Callable[[str], None]) -> _Place:
    kind = kind_of(path)
    if kind in ("model", "adapter"):
        require_sound(path)
        return _Place(path)
    if kind == "checkpoint":
        if problems := problems_of(path, verify=True):
            raise CorruptCheckpoint(
                f"{path}: {'; '.join(problems)}",
                hint=f"`sftctl inspect-ckpt {in_shell(path.parent.parent)} --verify` shows the "
                "good ones",
            )
        return _own_checkpoint(RunDir.open(path.parent.parent), path, read_manifest(path))
    run = RunDir.open(path)
    last, problems = last_manifest(run), list[str]()
    if run.final.is_dir():
        problems = problems_of_final(run.final)
        if not problems:
            return _Place(run.final, run, _manifest_of_final(run) or last)
        if last is None and not list_checkpoints(run.checkpoints):
            require_sound(run.final)
    found = _in_place_of_final(run, last)
    if problems:
        tell(f"warning: {run.final}: {problems[0]}; {found.path.name} is used instead")
    return _own_checkpoint(run, found.path, found.manifest)


def _own_checkpoint(run: RunDir, path: Path, manifest: CheckpointManifest) -> _Place:
    if (foreign := of_another_run(run, path, manifest)) is not None:
        raise foreign
    return _Place(path, run, manifest, True)


def _manifest_of_final(run: RunDir) -> CheckpointManifest | None:
    """The manifest of the checkpoint that `final/` was made from; None if it does not exist."""
    with suppress(CheckpointError):
        return read_manifest(run.checkpoints / checkpoint_name(read_seal(run.final).step))
    return None


def _in_place_of_final(run: RunDir, last: CheckpointManifest | None) -> GoodCheckpoint:
    """The checkpoint that `final/` was made from, or else the newest good checkpoint."""
    with suppress(CheckpointError):
        seal = read_seal(run.final)
        run_ids = (None, run.facts()["run_id"])
        if last is not None and seal.last_step == last.step and seal.run_id in run_ids:
            return newest_good(run.checkpoints, seal.step)
    return newest_good(run.checkpoints)
