"""Values in config.json that make training impossible, as far as this is known without
transformers."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from sftctl.inspection.pickles.values import table
from sftctl.model.folder.config_edits import edit_of_type, wrong_size
from sftctl.words import printable

_EMBEDDINGS = {  # by model_type: the end of the name of a tensor that each such model has
    "gpt2": "wte.weight", "gpt_neo": "wte.weight", "gptj": "wte.weight", "codegen": "wte.weight",
    "gpt_bigcode": "wte.weight", "mpt": "wte.weight", "gpt_neox": "embed_in.weight",
    "bloom": "word_embeddings.weight", "falcon": "word_embeddings.weight",
    "opt": "decoder.embed_tokens.weight", "mamba": "embeddings.weight",
}  # fmt: skip
_ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh",
    "gelu_python_tanh", "gelu_accurate", "hardswish", "laplace", "leaky_relu", "linear", "mish",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh", "prelu", "xielu",
    "sqrtsoftplus",
)  # fmt: skip
_ROTATIONS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "mrope", "proportional")
_ATTENTION = ("eager", "sdpa")
_KNOWN = {
    "hidden_act": _ACTIVATIONS,
    "hidden_activation": _ACTIVATIONS,
    "activation_function": _ACTIVATIONS,
    "rope_type": _ROTATIONS,
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
}
_HOLD_ROTATIONS = ("rope_scaling", "rope_parameters")


class Misfit(NamedTuple):
    """A value in config.json that can't be true, and what to change."""

    problem: str
    edit: str


def misfit_of_values(
    config: Mapping[str, Any], names: Mapping[str, Any], families: Collection[str]
) -> Misfit | None:
    """A value that no model can have, or a model type that does not fit the names of the tensors.
    `families` are the types to propose if there is no model type.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        return Misfit("no model_type", edit_of_type(config, families))
    if wrong := wrong_size(config):
        return Misfit(*wrong)
    tied = config.get("tie_word_embeddings")
    if not isinstance(tied, bool | None):
        said = f"tie_word_embeddings is {printable(repr(tied))}, not true or false"
        return Misfit(said, 'write "tie_word_embeddings": true or false, without quotes')
    end = _EMBEDDINGS.get(family)
    if end is not None and not any(f".{name}".endswith(f".{end}") for name in names):
        hint = "correct model_type in config.json, or put back the config.json of these weights"
        return Misfit(f"model_type is {family}, but the files have no {end}", hint)
    return None


def doubt_of_values(config: Mapping[str, Any]) -> str | None:
    """A value that transformers does not take, as far as we know; None if there is no such
    value."""
    for key, value in _named_values(config):
        if value is not None and value not in _KNOWN[key]:
            return f"config.json: {key} is {printable(repr(value))}, which train may not know"
    return None


def _named_values(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The values of config.json that name a part of transformers."""
    for key in _KNOWN:
        if key in config:
            yield key, config[key]
    for key in _HOLD_ROTATIONS:
        section = table(config.get(key))
        for one in (section, *map(table, section.values())):  # one for each kind of layer
            if "rope_type" in one or "type" in one:
                yield "rope_type", one.get("rope_type", one.get("type"))
