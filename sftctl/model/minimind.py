"""MiniMind's own .pth weights as a transformers model, for minimind-3 (2026).

Such a file is the `state_dict()` of a MiniMindForCausalLM, such as `out/full_sft_768.pth`. A
`checkpoints/*_resume.pth` has it under the key "model". Dense layers are the same as in Qwen3, and
have the same names. Experts are the same as in Qwen3-MoE, but must be stacked in one tensor. Older
series are refused: MiniMind2, for example, has no norms on queries and keys.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from sftctl.errors import ConfigError
from sftctl.model.folder.names_twice import two_values
from sftctl.model.folder.pickled_tensors import have_equal_bytes
from sftctl.model.folder.weight_names import Names, Warn, plain_name, renamed
from sftctl.model.folder.weight_values import values_of
from sftctl.model.presets import preset_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FIRST = "model.layers.0."
_EXPECTED = "expected weights as MiniMind saves them; `sftctl inspect-ckpt` shows the contents"
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def load_minimind(path: Path, warn: Warn, dtype: torch.dtype) -> "PreTrainedModel":
    """The model of a weights file, with weights in `dtype`. No code from the file is run.

    ConfigError if a weight of the model is not in the file.
    """
    from transformers import AutoModelForCausalLM

    stored = _read(path)
    weights = _plain(path, stored)
    model = AutoModelForCausalLM.from_config(
        _config(path, weights), dtype=dtype, trust_remote_code=False
    )
    try:
        weights = _stacked(weights)
    except (RuntimeError, KeyError) as problem:
        reason = str(problem).strip().splitlines()[-1].strip()
        raise ConfigError(f"{path}: {reason}", hint=_EXPECTED) from problem
    _names(model, weights).require(str(path), warn)
    if line := renamed(str(path), stored):
        warn(line)
    model.load_state_dict(weights, strict=False)
    values_of(model).require(str(path), warn)
    return model


def _names(model: "PreTrainedModel", weights: dict[str, torch.Tensor]) -> Names:
    """How the weights fit the model.

    The head may be missing, because it is tied to the embedding.
    """
    expected = model.state_dict()
    there = {name: weights[name].shape for name in expected.keys() & weights.keys()}
    return Names(
        missing=expected.keys() - weights.keys() - {"lm_head.weight"},
        unexpected=weights.keys() - expected.keys(),
        mismatched=[
            (name, tuple(shape), tuple(expected[name].shape))
            for name, shape in there.items()
            if shape != expected[name].shape
        ],
    )


def minimind_configuration(path: Path) -> "PretrainedConfig":
    """The configuration of the model that `load_minimind` loads, from the weights' shapes."""
    return _config(path, _plain(path, _read(path)))


def _plain(path: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without known prefixes. ConfigError if this gives two weights one name."""
    first: dict[str, str] = {}
    for name, tensor in weights.items():
        other = first.setdefault(plain_name(name), name)
        if not have_equal_bytes(weights[other], tensor):
            raise two_values(str(path), other, name)
    return {plain: weights[name] for plain, name in first.items()}


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ConfigError(
            f"{path}: can't be read as weights: {reason}", hint=_EXPECTED
        ) from problem
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        stored = stored["model"]
    if not isinstance(stored, dict):
        what = type(stored).__name__
        raise ConfigError(f"{path}: contains a {what}, not weights by name", hint=_EXPECTED)
    return {str(name): value.float() for name, value in stored.items() if torch.is_tensor(value)}


def _config(path: Path, weights: dict[str, torch.Tensor]) -> "PretrainedConfig":
    try:
        return _config_by_shapes(weights)
    except KeyError as problem:
        raise ConfigError(
            f"{path}: not weights of minimind-3: {problem.args[0]} is missing",
            hint="convert older series with MiniMind's scripts/convert_model.py first",
        ) from problem


def _config_by_shapes(weights: dict[str, torch.Tensor]) -> "PretrainedConfig":
    def rows(name: str) -> int:
        return int(weights[_FIRST + name].shape[0])

    vocab_size, hidden_size = weights["model.embed_tokens.weight"].shape
    head_dim = rows("self_attn.q_norm.weight")
    experts = [int(m[2]) for m in map(_EXPERT.fullmatch, weights) if m is not None]
    first_mlp = "mlp.experts.0.gate_proj.weight" if experts else "mlp.gate_proj.weight"
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in weights if ".layers." in n),
        "head_dim": head_dim,
        "num_attention_heads": rows("self_attn.q_proj.weight") // head_dim,
        "num_key_value_heads": rows("self_attn.k_proj.weight") // head_dim,
        "intermediate_size": rows(first_mlp),
    }
    if experts:
        sizes |= {"num_experts": 1 + max(experts), "moe_intermediate_size": rows(first_mlp)}
    preset = "minimind-3-moe" if experts else "minimind-3"
    config = preset_config(preset, vocab_size, **sizes)
    config.vocab_size = vocab_size
    return config


def _stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack a layer's experts into one tensor. In it, the rows of gate come before those of up."""
    result, parts = {}, {}
    for name, tensor in weights.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            result[name] = tensor
        else:
            parts[match[1], int(match[2]), match[3]] = tensor
    for prefix in {key[0] for key in parts}:
        numbers = sorted({number for layer, number, _ in parts if layer == prefix})
        gates = [torch.cat([parts[prefix, i, "gate"], parts[prefix, i, "up"]]) for i in numbers]
        result[f"{prefix}.gate_up_proj"] = torch.stack(gates)  # (E, 2*I, D)
        result[f"{prefix}.down_proj"] = torch.stack([parts[prefix, i, "down"] for i in numbers])
    return result
