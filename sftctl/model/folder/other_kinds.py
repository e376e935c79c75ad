"""Refuse models that are not causal language models for text, by their configuration."""

from typing import TYPE_CHECKING

from sftctl.errors import ConfigError
from sftctl.model.folder.quantized import require_not_quantized

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MEDIA = ("vision", "audio", "image", "video", "vq")
_TEXT_ONLY = "use a causal language model (text in, text out), such as Qwen3ForCausalLM"


def require_trainable(name: str, config: "PretrainedConfig") -> None:
    """ConfigError if the model is quantized, or is not a causal language model for text only."""
    require_not_quantized(name, config.to_dict())
    problem = _other_kind(config)
    if problem is not None:
        raise ConfigError(f"model {name}: {config.model_type} is {problem}", hint=_TEXT_ONLY)


def _other_kind(config: "PretrainedConfig") -> str | None:
    """The kind of the model if it is not a causal language model for text only; else None."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder model, not a causal language model"
    parts = set(getattr(config, "sub_configs", {}))
    has_media = any(kind in part for part in parts for kind in _MEDIA)
    causal = AutoModelForCausalLM._model_mapping.get(type(config), None)
    names = [cls.__name__ for cls in causal] if isinstance(causal, tuple) else []
    names += [causal.__name__] if isinstance(causal, type) else []
    is_whole = any(name.endswith("ForConditionalGeneration") for name in names)
    if has_media and (not names or is_whole or "text_config" not in parts):
        return "a model of text with images or sound, not of text alone"
    if not names:
        return "not a causal language model"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and not getattr(config, "is_decoder", False):
        return "a masked language model (it reads both ways), not a causal one"
    return None
