"""Why `sftctl train --model FOLDER` would refuse a folder, found with the same checks."""

from pathlib import Path
from typing import NamedTuple

import torch

from sftctl.errors import ConfigError, DataError
from sftctl.model.fake import fake_model
from sftctl.model.folder.read_files import SINGLE_AND_INDEX, files_read
from sftctl.model.load import check_fit
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

_DAMAGE = ("config.json", "weight_map", "in the files", "can't be loaded")
_NOT_INSTALLED = "config.json asks for"


class Refusal(NamedTuple):
    """The error that `train` would give."""

    reason: str  # without the name of the folder
    hint: str
    is_damage: bool  # weights and config.json do not fit each other
    is_of_tokenizer: bool = False


def refusal_of(folder: Path, other_tokenizer: Path) -> Refusal | None:
    """The first error of `train` about the folder's model, else about its tokenizer. None: no
    error.

    Only headers of weights are read. If the folder's tokenizer can't be loaded, `other_tokenizer`
    is used for the checks of the model. Warnings are not shown.
    """
    name = str(folder)
    if not files_read(folder):
        names = " nor ".join(single for single, _ in SINGLE_AND_INDEX)
        reason = f"neither {names} nor an index of parts is in it, and train reads no other file"
        return Refusal(reason, "rename the file, if it has tensors of these names", is_damage=True)
    tokenizer, problem = _tokenizer(folder, other_tokenizer)
    try:
        fake = fake_model(name, tokenizer, torch.device("cpu"), warn=_ignored)
    except ConfigError as error:
        return _refusal(folder, error)
    try:
        check_fit(fake.model, tokenizer, 1)
    except ConfigError as error:
        problem = problem or error
    return None if problem is None else _refusal(folder, problem, is_of_tokenizer=True)


def _refusal(
    folder: Path, error: ConfigError | DataError, *, is_of_tokenizer: bool = False
) -> Refusal:
    reason = error.message.removeprefix(f"model {folder}: ").removeprefix(f"{folder}: ")
    if is_of_tokenizer:
        reason = reason.replace(f"tokenizer {folder}", "its tokenizer", 1)
    is_damage = not is_of_tokenizer and any(words in reason for words in _DAMAGE)
    is_damage = is_damage and not reason.startswith(_NOT_INSTALLED)
    return Refusal(reason, error.hint or "", is_damage, is_of_tokenizer)


def _tokenizer(folder: Path, other: Path) -> tuple[ChatTokenizer, ConfigError | DataError | None]:
    """The folder's tokenizer and None.

    If it can't be loaded: the `other` tokenizer, and the error.
    """
    try:
        return load_tokenizer(str(folder), template_required=False), None
    except (ConfigError, DataError) as error:
        return load_tokenizer(str(other)), error


def _ignored(_: str) -> None:
    """Ignore a warning: `inspect-ckpt` shows a note of its own about the same fact."""
