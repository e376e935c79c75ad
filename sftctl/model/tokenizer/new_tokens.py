"""New special tokens: in a tokenizer, and as rows of a model's embeddings and head.

The tokenizer of a store has the new tokens, so the store's fingerprint and the hash of the
tokenizer depend on them. A run names the same tokens, and adds rows for them to its model.
"""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftctl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def add_new_tokens(hf: "PreTrainedTokenizerFast", name: str, tokens: Sequence[str]) -> None:
    """Append the texts to the vocabulary as special tokens, in this order.

    ConfigError if the vocabulary already has one of them, or if one is named twice.
    """
    from tokenizers import AddedToken

    known = hf.get_vocab()
    for number, token in enumerate(tokens):
        if token in known:
            raise ConfigError(
                f"model.new_tokens: tokenizer {name} has {token} already, with id {known[token]}",
                hint="leave it out: the tokenizer has it as one token",
            )
        if token in tokens[:number]:
            raise ConfigError(f"model.new_tokens: {token} is named twice", hint="name it once")
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    hf.add_tokens(special, special_tokens=True)


def new_ids(tokenizer: "ChatTokenizer", tokens: Sequence[str]) -> list[int]:
    """The ids of new tokens in the tokenizer of a store; DataError if the tokenizer lacks one."""
    known = tokenizer.hf.get_added_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise DataError(
            f"model.new_tokens: the data was prepared without {missing[0]}",
            hint=f"prepare it again with `--new-tokens {shlex.quote(','.join(tokens))}`",
        )
    return [known[token] for token in tokens]


def grow_configuration(config: "PretrainedConfig", ids: Sequence[int]) -> None:
    """Enlarge the vocabulary size in a configuration, so that the model has rows for these ids."""
    text = config.get_text_config()
    text.vocab_size = max([text.vocab_size, *(index + 1 for index in ids)])


def grow_model(model: "PreTrainedModel", ids: Sequence[int]) -> None:
    """Set the rows of new ids in embeddings and head to the mean of the old rows.

    The old rows are the rows of all ids below the new ids. Rows are added if the model has too few.
    The mean is computed in float64, so it depends only on the weights.
    """
    if not ids:
        return
    import torch  # here, because preparing data must not load torch

    num_old, needed = min(ids), max(ids) + 1
    if needed > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(needed, mean_resizing=False)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    weights = [model.get_input_embeddings().weight, head.weight]
    with torch.no_grad():
        for weight in [*weights, *([] if bias is None else [bias])]:
            weight[list(ids)] = weight[:num_old].mean(dim=0, dtype=torch.float64).to(weight.dtype)
