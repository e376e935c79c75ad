"""Whether a folder's weights fit its config.json, and whether `sftctl train` can use them.

Only headers are read. If nothing is wrong so far, torch is loaded for the checks of `train`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError
from sftctl.inspection.formats.config_values import misfit_of_values
from sftctl.inspection.formats.files import Files
from sftctl.inspection.inspection import Tensors
from sftctl.inspection.pickles.values import table
from sftctl.model.folder.quantized import (
    FROM_WHICH,
    WHOLE_NUMBERS_HINT,
    quantized_type,
    require_not_quantized,
    whole_numbers,
    without_scales,
)
from sftctl.words import in_shell

if TYPE_CHECKING:
    from sftctl.model.folder.refusal import Judgement

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def quantized_dtype(tensors: Tensors) -> str | None:
    """The dtype of the first quantized matrix. None if no matrix is."""
    types = {name: one.dtype for name, one in tensors.items()}
    return quantized_type(types, {name: one.shape for name, one in tensors.items()})


def judge_weights(
    files: Files, config: Mapping[str, Any], tensors: Tensors
) -> tuple[list[str], list[str], str | None]:
    """(problems, notes, command): the command trains from these weights, or is None if it would
    fail.

    `files.remedies` gets a remedy for each problem.
    """
    path = files.path
    if not config or not tensors:
        return [], [] if tensors else ["no weights in it"], None
    if note := _unreadable_numbers(path, config, tensors):
        return [], note, show_tensors(path)
    if misfit := misfit_of_values(config, tensors):
        problem = f"config.json: {misfit.problem}"
        files.remedies[problem] = misfit.edit
        return [problem], [], None
    if files.problems:  # files with damage are not checked further
        return [], [], None
    refused, warnings = _judgement(path)
    if refused is not None and refused.is_damage:
        is_own_words = refused.reason.startswith(("config.json", "can't be loaded", "neither"))
        is_own_words = is_own_words or refused.reason.partition(":")[0].endswith(".json")
        problem = refused.reason if is_own_words else f"config.json: {refused.reason}"
        files.remedies[problem] = refused.hint
        return [problem], [], None
    obstacle = None if refused is None else f"{refused.reason}; {refused.hint}"
    if refused is not None and not refused.is_of_tokenizer:
        return [], [str(obstacle)], show_tensors(path)
    if lacks := _what_train_lacks(files, tensors) or obstacle:
        return [], [*warnings, lacks], show_tensors(path)
    return [], [*warnings], f"`sftctl train --model {in_shell(path)}` starts a run from its weights"


def _judgement(path: Path) -> "Judgement":
    """The errors and warnings of `train`'s pre-flight about the folder.

    Loads torch, and reads the headers of the weights.
    """
    from sftctl.model.folder.refusal import judged

    return judged(path, SAMPLE_TOKENIZER)


def _unreadable_numbers(path: Path, config: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """Notes on quantized weights, or on weights that are integers; [] for other weights."""
    try:
        require_not_quantized(str(path), config)
    except ConfigError as error:
        return [error.message.removeprefix(f"model {path}: "), error.hint or ""]
    types = {name.removeprefix("model."): one.dtype for name, one in tensors.items()}
    if dtype := quantized_dtype(tensors):
        return [without_scales(dtype), FROM_WHICH]
    problem = whole_numbers(types)
    return [] if problem is None else [problem, WHOLE_NUMBERS_HINT]


def show_tensors(path: Path) -> str:
    """The command that shows the tensors, for use as advice."""
    return f"`sftctl inspect-ckpt {in_shell(path)} --tensors` shows its tensors"


def _what_train_lacks(files: Files, tensors: Tensors) -> str | None:
    """What `sftctl train` needs besides these weights, with its option; None: nothing."""
    settings = files.read_json("tokenizer_config.json")
    has_template = "chat_template.jinja" in files.sizes or "chat_template" in settings
    if not any(name in files.sizes for name in _TOKENIZERS):
        return "no tokenizer in it: train needs --tokenizer DIR"
    if not has_template:
        return "its tokenizer has no chat template: train needs --chat-template FILE"
    ids, rows = _num_ids(files), _num_embeddings(tensors)
    if rows is not None and ids > rows:
        sizes = f"{ids} ids, the model has embeddings for {rows}"
        return f"its tokenizer has {sizes}: train needs --tokenizer DIR"
    return None


def _num_ids(files: Files) -> int:
    """The number of tokens in tokenizer.json; 0 if the file is missing."""
    read = files.read_json("tokenizer.json")
    vocabulary, added = table(read.get("model")).get("vocab"), read.get("added_tokens")
    entries = vocabulary if isinstance(vocabulary, (dict, list)) else ()
    texts = {one[0] if isinstance(one, list) and one else str(one) for one in entries}
    texts |= {table(one).get("content") for one in added} if isinstance(added, list) else set()
    return len(texts)


def _num_embeddings(tensors: Tensors) -> int | None:
    """The number of rows of the embedding; None if no tensor has its usual name."""
    found = (one for name, one in tensors.items() if name.endswith("embed_tokens.weight"))
    return next((one.shape[0] for one in found if len(one.shape) == 2), None)
