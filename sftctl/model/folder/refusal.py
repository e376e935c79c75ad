"""What `sftctl train --model FOLDER` would say about a folder, by the checks of its pre-flight."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sftctl.errors import ConfigError, DataError
from sftctl.model.fake import fake_model
from sftctl.model.folder.read_files import no_file_read
from sftctl.model.folder.weight_names import Warn
from sftctl.model.load import check_fit
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

_DAMAGE = (
    "config.json",
    "weight_map",
    "has no metadata",
    "in the files",
    "can't be loaded",
    "with other values",
    "not merged",
    "a link to a file",
)
_NOT_INSTALLED = "config.json asks for"


class Refusal(NamedTuple):
    """The error that `train` would give."""

    reason: str  # without the name of the folder
    hint: str
    is_damage: bool  # weights and config.json do not fit each other
    is_of_tokenizer: bool = False


class Judgement(NamedTuple):
    """The first error of `train`, and its warnings, without the name of the folder."""

    refusal: Refusal | None
    warnings: Sequence[str] = ()


def judged(folder: Path, other_tokenizer: Path) -> Judgement:
    """The first error of `train` about the folder's model, else about its tokenizer. Also its
    warnings.

    Only headers of weights are read. If the folder's tokenizer can't be loaded, `other_tokenizer`
    is used for the checks of the model.
    """
    if lacks := no_file_read(folder):
        return Judgement(Refusal(*lacks, is_damage=True))
    said: list[str] = []
    tokenizer, problem = _tokenizer(folder, other_tokenizer, said.append)
    try:
        fake = fake_model(str(folder), tokenizer, torch.device("cpu"), warn=said.append)
        check_fit(fake.model, tokenizer, 1)
    except ConfigError as error:
        is_of_tokenizer = error.message.startswith("tokenizer ")
        if not is_of_tokenizer:
            return Judgement(_refusal(folder, error), _plain(folder, said))
        problem = problem or error
    refusal = None if problem is None else _refusal(folder, problem, is_of_tokenizer=True)
    return Judgement(refusal, _plain(folder, said))


def _plain(folder: Path, lines: Sequence[str]) -> list[str]:
    """The lines without the name of the folder, each once."""
    return [*dict.fromkeys(_without(folder, line) for line in lines)]


def _without(folder: Path, text: str) -> str:
    text = text.removeprefix(f"model {folder}: ").removeprefix(f"{folder}: ")
    return text.replace(f"tokenizer {folder}", "its tokenizer", 1)


def _refusal(
    folder: Path, error: ConfigError | DataError, *, is_of_tokenizer: bool = False
) -> Refusal:
    reason = _without(folder, error.message)
    is_damage = not is_of_tokenizer and any(words in reason for words in _DAMAGE)
    is_damage = is_damage and not reason.startswith(_NOT_INSTALLED)
    return Refusal(reason, error.hint or "", is_damage, is_of_tokenizer)


def _tokenizer(
    folder: Path, other: Path, warn: Warn
) -> tuple[ChatTokenizer, ConfigError | DataError | None]:
    """(tokenizer, None). If the folder's tokenizer can't be loaded: (`other`, the error)."""
    try:
        return load_tokenizer(str(folder), template_required=False, warn=warn), None
    except (ConfigError, DataError) as error:
        return load_tokenizer(str(other)), error
