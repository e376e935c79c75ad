"""What a changed configuration key does to a resumed run, and which keys may change."""

from collections.abc import Collection, Iterator
from dataclasses import fields

from sftctl.config.keys import keys
from sftctl.config.schema import SECTIONS
from sftctl.errors import ConfigError

DATA = "data"
"""The key for `--allow` if the data is not the checkpoint's data."""

SOURCES = "data.sources"
"""The key for `--allow` if a mixture gets new weights in the middle of an epoch."""

ROUNDED = "the same examples in every step, sums rounded differently"

ROUNDING_KEYS = ("micro_batch_tokens", "strategy", "reduction", "device", "compile")
LEARNING_RATE_KEYS = (
    "train.epochs",
    "train.max_steps",
    "optim.learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.min_lr_ratio",
)
ADAPTER_KEYS = ("adapter.alpha", "adapter.dropout")  # other adapter keys change the parameters

_TRAINED_KEYS = ("train.freeze", "train.train_only")
_CHOOSING_KEYS = ("train.patience", "train.min_delta", "train.final", "train.eval_interval")
_OTHER_FORM = "the adapter was trained on the base in the other form"
_EFFECTS = {
    "train.dtype": "the same examples in every step, numbers rounded differently; "
    "float16's loss scale starts again",
    "model": "a run keeps the model and tokenizer that it began with",
    "adapter": "the adapter would have other parameters",
    "adapter.start": "the run continues from its own weights",
    **dict.fromkeys(("adapter.quantize", "adapter.base_dtype"), _OTHER_FORM),
    "evaluation.num_prompts": "the same steps; later metrics are of other rows than the best",
    "evaluation": "the same steps; perhaps another last step, or another step in final/",
    **dict.fromkeys(
        _CHOOSING_KEYS, "the same steps; perhaps another last step, or another step in final/"
    ),
    **dict.fromkeys(
        _TRAINED_KEYS,
        "the optimizer's state is that of other parameters; train a new run from final/",
    ),
}
"""Key -> its effect. An entry for a section is for all its keys that have no entry."""


def effect_of(key: str, *, is_possible: bool) -> str:
    """What a changed key does to a run, if this depends only on the key."""
    if effect := _EFFECTS.get(key) or _EFFECTS.get(key.partition(".")[0]):
        return effect
    return "the same steps" if is_possible else "the steps would hold other examples"


def is_impossible(key: str) -> bool:
    """Whether a run can never be resumed with another value of this key."""
    section = key.partition(".")[0]
    if section == "adapter":
        return key not in (*ADAPTER_KEYS, "adapter.start")
    return key in ("train.seed", *_TRAINED_KEYS) or section == "model"


def allowable_keys() -> Iterator[str]:
    """The keys that `--allow` accepts. Changing them makes another run, which may be intended."""
    yield DATA
    yield SOURCES
    yield "train.dtype"
    yield from ADAPTER_KEYS
    yield from (f"optim.{item.name}" for item in fields(SECTIONS["optim"]))


def require_allowable(allow: Collection[str]) -> None:
    """ConfigError for a key that `--allow` does not accept."""
    known = [*allowable_keys()]
    for key in sorted({*allow} - {*known}):
        if key in keys() and is_impossible(key):
            raise ConfigError(
                f"--allow {key}: impossible: {effect_of(key, is_possible=False)}",
                hint=f"undo the change, or start a new run with `sftctl train`; --allow takes "
                f"{', '.join(known)}",
            )
        raise ConfigError(
            f"--allow {key}: no such key; there are {', '.join(known)}",
            hint="the plan of a resume that is refused names the keys to allow",
        )
