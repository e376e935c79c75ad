"""Every configuration key has a documentation, a type and, if it is a number, bounds."""

import dataclasses
import re
from pathlib import Path

import pytest

from sftctl.config.keys import documentation, keys
from sftctl.config.load import load_config
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.errors import ConfigError


def test_every_key_has_its_documentation() -> None:
    assert list(documentation()) == keys()
    for key, text in documentation().items():
        assert text == " ".join(text.split()), key
        assert re.search(r"[.)]$", text), f"{key}: {text}"


def test_documentation_is_the_text_below_the_field() -> None:
    assert documentation()["train.accumulation_steps"] == (
        "Number of batches in a step. A step trains batch_size × accumulation_steps examples, on "
        "all ranks together."
    )


def test_documentation_ends_with_the_words_that_a_key_accepts() -> None:
    assert documentation()["train.device"].endswith(" One of auto, cpu, cuda, mps.")
    assert "One of" not in documentation()["optim.learning_rate"]  # auto or a number


def test_keys_are_those_of_the_sections_in_order() -> None:
    assert keys()[:2] == ["model.name", "model.tokenizer"]
    assert keys()[-1] == "tracking.samples"
    assert {key.split(".")[0] for key in keys()} == SECTIONS.keys()


def test_sections_are_the_fields_of_the_configuration() -> None:
    names = [field.name for field in dataclasses.fields(RunConfig)]
    assert names == ["output_dir", *SECTIONS]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().train.epochs = 3  # type: ignore[misc]


def test_a_step_trains_batch_size_times_accumulation_steps_examples() -> None:
    config = load_config(None, {"train.batch_size": 4, "train.accumulation_steps": 3})
    assert config.train.global_batch_size == 12


TOO_SMALL = {
    "data.num_workers": (-1, 0),
    "data.val_fraction": (-0.5, 0),
    "data.reasoning_weight": (-0.5, 0),
    "data.prefetch_factor": (0, 1),
    "data.max_seq_len": (1, 2),
    "adapter.rank": (0, 1),
    "adapter.alpha": (-1.0, 0),
    "adapter.dropout": (-0.1, 0),
    "optim.learning_rate": (-1e-5, 0),
    "optim.warmup_steps": (-1, 0),
    "optim.min_lr_ratio": (-0.1, 0),
    "optim.weight_decay": (-0.1, 0),
    "optim.beta1": (-0.1, 0),
    "optim.beta2": (-0.1, 0),
    "optim.eps": (-1e-8, 0),
    "optim.grad_clip": (-1.0, 0),
    "train.epochs": (0, 1),
    "train.max_steps": (0, 1),
    "train.batch_size": (0, 1),
    "train.accumulation_steps": (0, 1),
    "train.micro_batch_tokens": (0, 1),
    "train.eval_interval": (-1, 0),
    "train.patience": (-1, 0),
    "train.min_delta": (-0.1, 0),
    "train.collective_timeout_s": (0, 1),
    "train.seed": (-1, 0),
    "checkpoint.save_interval": (-1, 0),
    "checkpoint.keep": (0, 1),
    "checkpoint.keep_best": (-1, 0),
    "evaluation.num_prompts": (0, 1),
    "evaluation.max_new_tokens": (0, 1),
    "tracking.log_interval": (0, 1),
    "tracking.samples": (-1, 0),
}


@pytest.mark.parametrize("key", TOO_SMALL)
def test_a_number_below_its_bound_is_refused(key: str) -> None:
    value, minimum = TOO_SMALL[key]
    others = {"adapter.lora": True} if key.startswith("adapter.") else {}
    with pytest.raises(ConfigError) as caught:
        load_config(None, {key: value} | others)
    assert caught.value.message == f"{key}: {value} is too small; at least {minimum}"
    if key != "adapter.alpha":  # 0 is refused for another reason: the adapter would add nothing
        load_config(None, {key: minimum} | others)  # the bound itself is allowed


def test_every_number_has_a_bound() -> None:
    hints = {
        f"{name}.{field.name}": str(field.type)
        for name, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
    }
    assert {
        key for key, hint in hints.items() if re.search(r"\b(int|float)\b", hint)
    } == TOO_SMALL.keys()


@pytest.mark.parametrize(
    ("key", "largest", "beyond"),
    [
        ("train.epochs", 10**9, 10**9 + 1),
        ("optim.warmup_steps", 10**9, 10**9 + 1),
        ("optim.min_lr_ratio", 1, 1.001),
        ("train.seed", 2**63 - 1, 2**63),
        ("data.max_seq_len", 2**63 - 1, 2**63),
    ],
)
def test_the_largest_number_is_allowed_and_a_larger_one_refused(
    key: str, largest: float, beyond: float
) -> None:
    load_config(None, {key: largest})
    with pytest.raises(ConfigError, match=rf"{key}: .* is too large; (at most|it must be below)"):
        load_config(None, {key: beyond})


def test_validating_on_everything_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"data.val_fraction": 1.0})
    assert caught.value.message == "data.val_fraction: 1.0 is too large; it must be below 1"


@pytest.mark.parametrize("key", ["optim.beta1", "optim.beta2"])
def test_a_moment_that_never_decays_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(None, {key: 1.0})


def test_a_cosine_that_ends_above_its_peak_is_refused() -> None:
    with pytest.raises(ConfigError, match="optim.min_lr_ratio"):
        load_config(None, {"optim.min_lr_ratio": 1.5})


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("key", ["optim.learning_rate", "optim.weight_decay", "data.val_fraction"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(None, {key: value})


def test_the_output_directory_is_a_path() -> None:
    assert load_config(None, {"output_dir": "runs/a"}).output_dir == Path("runs/a")


def test_adapter_keys_without_an_adapter_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"adapter.rank": 8})
    assert caught.value.message == "adapter.rank: set, but no adapter is trained"
    assert caught.value.hint == "add --lora, or lora = true in [adapter]"
