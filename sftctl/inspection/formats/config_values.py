"""Find values in config.json that make training impossible. Loads no transformers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sftctl.model.folder.config_edits import edit_of_type, wrong_size
from sftctl.words import printable

_EMBEDDINGS = {  # model_type -> how the name of the embedding tensor ends
    "gpt2": "wte.weight", "gpt_neo": "wte.weight", "gptj": "wte.weight", "codegen": "wte.weight",
    "gpt_bigcode": "wte.weight", "mpt": "wte.weight", "gpt_neox": "embed_in.weight",
    "bloom": "word_embeddings.weight", "falcon": "word_embeddings.weight",
    "opt": "decoder.embed_tokens.weight", "mamba": "embeddings.weight",
}  # fmt: skip
_FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "granite", "gemma", "gemma2",
    "gemma3_text", "phi3", "olmo2",
)  # fmt: skip
"""Types to propose if config.json has no model_type."""


class Misfit(NamedTuple):
    """A wrong value in config.json, and what to change."""

    problem: str
    edit: str


def misfit_of_values(config: Mapping[str, Any], names: Mapping[str, Any]) -> Misfit | None:
    """A value that no model can have, or a model type that contradicts the tensors' names. None if
    there is none.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        return Misfit("no model_type", edit_of_type(config, _FAMILIES))
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
