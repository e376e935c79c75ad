"""Write a Hugging Face directory from a run, a checkpoint or another such directory."""

from pathlib import Path

import torch

from sftctl.disk import new_folder, refusals
from sftctl.errors import CheckpointError
from sftctl.model.generate import stop_ids
from sftctl.model.load import MAX_SHARD_BYTES, save_pretrained
from sftctl.trained.card import model_card
from sftctl.trained.checks import check_export
from sftctl.trained.open import Trained, open_trained

CARD_NAME = "README.md"


def export_model(
    source: Path, output: Path, dtype: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the new directory `output`; after an error nothing is left of it."""
    check_export(source, output, dtype)
    trained = open_trained(source)
    card = _card(trained, source, dtype)
    model = trained.model.to(getattr(torch, dtype))
    if model.generation_config is not None:  # so that other tools stop at the end of a turn
        model.generation_config.eos_token_id = stop_ids(model, trained.tokenizer)
    with (
        refusals(output, CheckpointError, hint="choose another --output"),
        new_folder(output) as folder,
    ):
        save_pretrained(model, trained.tokenizer, folder, max_shard_bytes)
        if card is not None:
            (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _card(trained: Trained, source: Path, dtype: str) -> str | None:
    """The model card of a run; a model directory keeps its own, if it has one."""
    if trained.run is not None:
        return model_card(trained.run, trained.manifest, dtype)
    own = source / CARD_NAME
    return own.read_text(encoding="utf-8", errors="replace") if own.is_file() else None
