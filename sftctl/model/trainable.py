"""Select the parameters to train by patterns on their names.

`select_trained` sets `requires_grad` once. All other code reads `requires_grad` to know which
parameters are trained.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sftctl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_LAYERS = re.compile(r"layers\[(-?\d*):(-?\d*)\]")
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
"""The first number in a name is the layer's number: 3 in `model.layers.3.mlp.experts.0.weight`."""


def select_trained(
    model: "PreTrainedModel", train_only: Iterable[str] | None, freeze: Iterable[str] | None
) -> None:
    """Set `requires_grad` to False for every parameter that the patterns exclude.

    A parameter is trained if `train_only` matches it (None: matches all) and `freeze` does not
    match it. A parameter that is already frozen stays frozen. Raises ConfigError if a pattern
    matches nothing, or if no parameter is trained.
    """
    names = _names_by_id(model)
    trained = set(names) if train_only is None else matching(model, "train.train_only", train_only)
    trained -= matching(model, "train.freeze", freeze or ())
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "train.freeze and train.train_only leave no parameter to train",
            hint=f"the parameters are {_summary(names)}",
        )


def require_new_rows_trained(model: "PreTrainedModel") -> None:
    """ConfigError if embeddings or head are frozen, although they got rows for new tokens.

    The new rows would never be trained, and stay the mean of the old rows.
    """
    parts = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, part in parts.items():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            raise ConfigError(
                f"model.new_tokens: train.freeze or train.train_only freezes the {name}, so that "
                "the rows of the new tokens would never be trained",
                hint="train embeddings and head with the rest: take them out of train.freeze, or "
                "put them into train.train_only",
            )


def learning_rate_factors(
    model: "PreTrainedModel", factors: Mapping[str, float] | None
) -> dict[str, float]:
    """The learning rate factor of each parameter that a pattern in `optim.groups` matches, by name.

    ConfigError if a pattern matches nothing, or if two patterns give a parameter different factors.
    """
    names, found = _names_by_id(model), dict[int, tuple[str, float]]()
    for pattern, factor in (factors or {}).items():
        for key in matching(model, "optim.groups", [pattern]):
            other, before = found.setdefault(key, (pattern, factor))
            if before != factor:
                raise ConfigError(
                    f"optim.groups: {other} and {pattern} both match {names[key][0]}",
                    hint="a parameter has one factor: make the patterns narrower",
                )
    return {names[key][0]: factor for key, (_, factor) in found.items()}


def matching(model: "PreTrainedModel", setting: str, patterns: Iterable[str]) -> set[int]:
    """The ids of all parameters that one of the patterns matches.

    A tied parameter has several names, and a match of one name is enough. ConfigError for a pattern
    that matches nothing. It names the `setting` of the pattern.
    """
    names, result = _names_by_id(model), set[int]()
    for pattern in patterns:
        found = _matched(model, names, pattern.strip())
        if not found:
            raise ConfigError(
                f"{setting}: {pattern} matches no parameter of the model",
                hint=f"its parameters are {_summary(names)}; or embeddings, head, layers[:N]",
            )
        result |= found
    return result


def _names_by_id(model: "PreTrainedModel") -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _matched(model: "PreTrainedModel", names: dict[int, list[str]], pattern: str) -> set[int]:
    """The ids of the parameters that one pattern matches."""
    if pattern == "embeddings":
        return _ids(model.get_input_embeddings())
    if pattern == "head":
        return _ids(model.get_output_embeddings())
    if (bounds := _LAYERS.fullmatch(pattern)) is not None:
        start, end = (int(bound) if bound else None for bound in bounds.groups())
        chosen = set(range(_num_layers(names))[start:end])
        return {key for key, (name, *_) in names.items() if _layer(name) in chosen}
    return {
        key
        for key, all_names in names.items()
        if any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in all_names)
    }


def _ids(module: "nn.Module | None") -> set[int]:
    return set() if module is None else {id(parameter) for parameter in module.parameters()}


def _layer(name: str) -> int | None:
    """The number of a parameter's layer; None if the parameter is outside of the layers."""
    found = _LAYER_NUMBER.search(name)
    return int(found[1]) if found else None


def _num_layers(names: dict[int, list[str]]) -> int:
    numbers = [number for name, *_ in names.values() if (number := _layer(name)) is not None]
    return max(numbers, default=-1) + 1


def _summary(names: dict[int, list[str]]) -> str:
    """All names, with * for the layer numbers, each once."""
    every = (name for all_names in names.values() for name in all_names)
    return ", ".join(dict.fromkeys(_LAYER_NUMBER.sub(".*.", name) for name in every))
