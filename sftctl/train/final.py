"""Write `final/`: the trained model, or the trained adapter, of a run that has ended."""

from pathlib import Path

import torch

from sftctl.checkpoint.directory import GoodCheckpoint
from sftctl.checkpoint.load import load_weights
from sftctl.checkpoint.sealed import seal
from sftctl.disk import refusals
from sftctl.errors import CheckpointError
from sftctl.folders import new_folder
from sftctl.model.adapter.lora import lora_config, saved_tensors
from sftctl.model.adapter.save import save_adapter
from sftctl.model.load import load_architecture, save_pretrained
from sftctl.runs.card import model_card
from sftctl.runs.choosing import final_checkpoint, final_of
from sftctl.runs.final import CARD_NAME
from sftctl.tracking import status
from sftctl.tracking.tracker import Tracker
from sftctl.train.session import Session


def write_final(session: Session, tracker: Tracker) -> None:
    """Write the trained model as a Hugging Face directory, or the adapter in peft's format.

    The directory is complete or absent. The weights are read from the best or the last checkpoint,
    so no rank has to hold the complete model.
    """
    run, step, choice = session.run, session.state.progress.step, final_of(session.config.train)
    goal = str(session.config.evaluation.goal)

    def write() -> str | None:
        if run.final.is_dir():
            return None
        status.doing("writing final/")
        found, warning = final_checkpoint(run, choice, step, goal)
        with refusals(run.final, CheckpointError), new_folder(run.final) as folder:
            if session.config.adapter.lora:
                _save_adapter(session, found, folder)
            else:
                _save_model(session, found, folder)
            seal(folder, found.manifest, run.facts()["run_id"], step, choice)
        return warning

    warning = session.world.on_main(write)
    if warning is not None:
        tracker.event("warning", step, message=warning)


def _save_model(session: Session, found: GoodCheckpoint, folder: Path) -> None:
    model = load_architecture(session.run.model_folder)
    load_weights(found.path, model.state_dict(), found.manifest)
    save_pretrained(model, session.inputs.tokenizer, folder)


def _save_adapter(session: Session, found: GoodCheckpoint, folder: Path) -> None:
    model, base = session.state.loss_module.model, found.manifest.base or {}
    shapes = {name: tensor.shape for name, tensor in saved_tensors(model).items()}
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    load_weights(found.path, tensors, found.manifest)
    save_adapter(
        tensors, lora_config(model), session.config.model.name, base.get("revision"), folder
    )
    session.inputs.tokenizer.save(folder)
    card = model_card(session.run, found.manifest, "float32", "adapter")
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
