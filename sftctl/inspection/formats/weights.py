"""Whether a folder's weights fit its config.json, and whether `sftctl train` can use them.

Only headers are read. If nothing is wrong so far, torch is loaded for the checks of `train`.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError
from sftctl.inspection.formats.config_values import Misfit, misfit_of_values
from sftctl.inspection.formats.expected_names import LAYER, TIED_BY_DEFAULT, names_of
from sftctl.inspection.formats.files import Files
from sftctl.inspection.inspection import Tensors
from sftctl.inspection.pickles.values import table
from sftctl.model.folder.quantized import (
    WHOLE_NUMBERS_HINT,
    require_not_quantized,
    whole_numbers,
)
from sftctl.model.folder.read_files import unread_files
from sftctl.model.folder.remote_code import code_in
from sftctl.model.folder.tied_head import (
    COMPARED_BYTES,
    HEAD_DIFFERS,
    HEAD_HINT,
    Beginning,
    heads_differ,
    role_of,
)
from sftctl.model.folder.weight_names import Names, renamed
from sftctl.words import in_shell

if TYPE_CHECKING:
    from sftctl.model.folder.refusal import Refusal

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "U32", "I32")


def quantized_dtype(tensors: Tensors) -> str | None:
    """The dtype of the first quantized matrix. None if no matrix is."""
    found = (one.dtype for one in tensors.values() if len(one.shape) > 1)
    name = next((dtype for dtype in found if dtype in _QUANTIZED), None)
    return None if name is None else NUMBER_TYPES[name].torch


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
    # Damaged files are not compared.
    names = Names() if files.problems else names_of(tensors, config)
    if misfit := _misfit(config, tensors, names):
        problem = f"config.json: {misfit.problem}"
        files.remedies[problem] = misfit.edit
        return [problem], [], None
    notes = [*_remarks(path, tensors, names)]
    refused = None if files.problems else _refusal(path)
    if refused is not None and refused.is_damage:
        is_own_words = refused.reason.startswith(("config.json", "can't be loaded", "neither"))
        problem = refused.reason if is_own_words else f"config.json: {refused.reason}"
        files.remedies[problem] = refused.hint
        return [problem], [], None
    obstacle = None if refused is None else f"{refused.reason}; {refused.hint}"
    if refused is None or refused.is_of_tokenizer:
        if code := code_in(path):
            own = "the model's own code is not run"
            notes.append(f"{own}: {code}; train uses transformers' classes")
        obstacle = _what_train_lacks(files, tensors) or obstacle
    if obstacle is not None:
        return [], [*notes, obstacle], show_tensors(path)
    return [], notes, f"`sftctl train --model {in_shell(path)}` starts a run from its weights"


def _remarks(path: Path, tensors: Tensors, names: Names) -> Iterator[str]:
    """Notes on facts that `sftctl train` also warns about."""
    if line := renamed("weights", [name.removeprefix("model.") for name in tensors]):
        yield line
    if line := unread_files(path):
        yield line
    if names.unexpected:
        yield f"{len(names.unexpected)} tensors in layers that config.json does not count"


def _misfit(config: Mapping[str, Any], tensors: Tensors, names: Names) -> Misfit | None:
    """A value in config.json that contradicts the tensors; None if there is none."""
    if misfit := misfit_of_values(config, tensors, LAYER):
        return misfit
    if problem := names.problem():
        return Misfit(problem, names.hint())
    tied = config.get("tie_word_embeddings", config.get("model_type") in TIED_BY_DEFAULT)
    apart = tied and heads_differ(_beginnings(tensors))
    return Misfit(HEAD_DIFFERS, HEAD_HINT) if apart else None


def _beginnings(tensors: Tensors) -> dict[str, Beginning]:
    """The first bytes of head and embedding. Left out unless stored row-major and in one part."""
    found = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix("model.")
        if role_of(plain) is None or len(tensor.parts) != 1:
            continue
        part = tensor.parts[0]
        if part.strides in (None, _row_after_row(part.shape)):
            with part.file.open("rb") as stream:
                stream.seek(part.begin)
                data = stream.read(min(tensor.num_bytes, COMPARED_BYTES))
            found[plain] = Beginning(tensor.dtype, data)
    return found


def _row_after_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a row-major tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _refusal(path: Path) -> "Refusal | None":
    """Why `sftctl train` would refuse the folder, or None. Loads torch, and reads only headers."""
    from sftctl.model.folder.refusal import refusal_of

    return refusal_of(path, SAMPLE_TOKENIZER)


def _unreadable_numbers(path: Path, config: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """Notes on quantized weights, or on weights that are integers; [] for other weights."""
    try:
        require_not_quantized(str(path), config)
    except ConfigError as error:
        return [error.message.removeprefix(f"model {path}: "), error.hint or ""]
    types = {name.removeprefix("model."): one.dtype for name, one in tensors.items()}
    if problem := whole_numbers(types):
        return [problem, WHOLE_NUMBERS_HINT]
    dtype = quantized_dtype(tensors)
    return [f"weights of type {dtype} can't be trained; take the model in bfloat16"] * bool(dtype)


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
