"""Complete a new run's configuration: absolute paths, and values for `auto`."""

from dataclasses import replace
from pathlib import Path

from sftctl.config.schema import RunConfig
from sftctl.model.presets import is_preset
from sftctl.model.tokenizer.chat_templates import CHATML
from sftctl.train.preflight.validation_sets import with_fraction

PRESET_LEARNING_RATE = 1e-3
PRETRAINED_LEARNING_RATE = 2e-5
ADAPTER_LEARNING_RATE = 10 * PRETRAINED_LEARNING_RATE
"""Schulman et al. 2025, "LoRA Without Regret": LoRA learns best at about ten times the learning
rate of full fine-tuning. They found this for all their model sizes and data sets."""


def resolve_config(config: RunConfig) -> RunConfig:
    """Make paths absolute. Replace `auto` in settings that depend only on the kind of model."""
    model, data, optim = config.model, config.data, config.optim
    if optim.learning_rate == "auto":
        rate = PRESET_LEARNING_RATE if is_preset(model.name) else PRETRAINED_LEARNING_RATE
        if config.adapter.lora:
            rate = ADAPTER_LEARNING_RATE
        optim = replace(optim, learning_rate=rate)
    if not is_preset(model.name):
        model = replace(model, name=_absolute(model.name))
    if model.tokenizer is not None:
        model = replace(model, tokenizer=_absolute(model.tokenizer))
    if data.path is not None:
        data = replace(data, path=str(Path(data.path).absolute()))
    if data.sources is not None:
        absolute = (s.path and str(Path(s.path).absolute()) for s in data.sources)
        sources = (replace(s, path=p) for s, p in zip(data.sources, absolute, strict=True))
        data = replace(data, sources=tuple(sources))
    if data.chat_template not in (None, CHATML):
        data = replace(data, chat_template=str(Path(str(data.chat_template)).absolute()))
    data = with_fraction(replace(config, data=data))
    adapter = config.adapter
    if adapter.start is not None:
        adapter = replace(adapter, start=str(Path(adapter.start).absolute()))
    evaluation = config.evaluation
    if evaluation.sets is not None:
        paths = [one.path and str(Path(one.path).absolute()) for one in evaluation.sets]
        sets = (replace(s, path=p) for s, p in zip(evaluation.sets, paths, strict=True))
        evaluation = replace(evaluation, sets=tuple(sets))
    return replace(
        config, model=model, data=data, optim=optim, adapter=adapter, evaluation=evaluation
    )


def _absolute(name: str) -> str:
    """The absolute form of a path; the name of a model on the hub stays as it is."""
    path = Path(name)
    return str(path.absolute()) if path.exists() else name
