"""What has changed since a checkpoint was saved: threads, ranks, versions, keys, data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict, load_config
from sftctl.config.schema import RunConfig
from sftctl.environment import usable_cores
from sftctl.runs.differences import (
    ComputeHere,
    DataHere,
    Difference,
    differences_at_step_0,
    differences_of,
    threads_for,
    versions,
)
from sftctl.runs.effects import ROUNDED, allowable_keys
from tests.toys.checkpoints import make_manifest

VERSIONS = {"torch": "2.13.0", "cpu": "AVX512"}
DATA = DataHere(Path("store"), "f" * 64, 8000)


def config_of(**changes: object) -> RunConfig:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, {"train.dtype": "float32", "optim.learning_rate": 1e-3} | given)


def manifest_of(config: RunConfig, **changes: Any) -> CheckpointManifest:
    """A checkpoint at step 300 of 1,000, saved by one rank with two threads."""
    manifest = replace(make_manifest(300), config=config_to_dict(config), versions=VERSIONS)
    return replace(manifest, **changes)


def compute(ranks: int = 1, threads: int = 2, **changed: str) -> ComputeHere:
    return ComputeHere(ranks, threads, VERSIONS | changed)


def found(manifest: CheckpointManifest, config: RunConfig, **here: Any) -> list[Difference]:
    return [*differences_of(manifest, config, here.get("data", DATA), here.get("compute"))]


@pytest.mark.parametrize(
    ("saved_threads", "ranks", "reduction", "expected"),
    [
        (1, 1, "plain", 1),  # the same ranks: the bits depend on the threads
        (1, 2, "plain", 7),  # other ranks: the bits differ anyway
        (1, 2, "exact", 1),  # exact sums: the same bits on any ranks, if the threads are the same
        (usable_cores() + 1, 1, "plain", 7),  # there are not as many cores
        (usable_cores() + 1, 2, "exact", 7),
    ],
)
def test_a_resume_takes_the_threads_of_the_checkpoint_where_they_decide_the_bits(
    saved_threads: int, ranks: int, reduction: str, expected: int
) -> None:
    config = config_of(train__reduction=reduction)
    manifest = manifest_of(config, num_threads=saved_threads)
    assert threads_for(manifest, config, ranks, 7) == expected


def test_nothing_differs_where_nothing_has_changed() -> None:
    config = config_of()
    manifest = manifest_of(config, num_threads=1)
    assert found(manifest, config, compute=compute(threads=1)) == []
    assert found(manifest, config, data=None) == []


def test_another_number_of_threads_is_reported_if_there_are_too_few_cores() -> None:
    config, more = config_of(), usable_cores() + 1
    manifest = manifest_of(config, num_threads=more)
    assert found(manifest, config, compute=compute(threads=1)) == [
        Difference("threads", more, 1, "free", "sums rounded differently")
    ]
    assert found(manifest, config, compute=compute(ranks=2, threads=1)) == [
        Difference("ranks", 1, 2, "free", ROUNDED)
    ]
    exact = config_of(train__reduction="exact")
    manifest = manifest_of(exact, num_threads=more)
    assert found(manifest, exact, compute=compute(ranks=2, threads=1)) == [
        Difference("ranks", 1, 2, "free", "the same steps, to the bit"),
        Difference("threads", more, 1, "free", "sums rounded differently"),
    ]


def test_another_version_is_reported() -> None:
    config = config_of()
    here = compute(threads=1, torch="2.14.0", numpy="2.0")
    assert found(manifest_of(config, num_threads=1), config, compute=here) == [
        Difference("torch", "2.13.0", "2.14.0", "free", "bits may differ"),
        Difference("numpy", None, "2.0", "free", "bits may differ"),
    ]


@pytest.mark.parametrize(
    ("dtype", "effect"),
    [("float32", ROUNDED), ("bfloat16", f"{ROUNDED}; bfloat16 was autocast before")],
)
def test_a_run_of_a_version_that_padded_its_rows_is_rounded_differently(
    dtype: str, effect: str
) -> None:
    config = config_of(train__dtype=dtype)
    manifest = manifest_of(config, num_threads=1)
    before = replace(manifest, versions={**manifest.versions, "sftctl": "0.1.0"})
    assert found(before, config, compute=compute(threads=1, sftctl="0.2.0")) == [
        Difference("sftctl", "0.1.0", "0.2.0", "free", effect)
    ]


def test_versions_name_everything_that_computes() -> None:
    names = ["sftctl", "python", "torch", "transformers", "tokenizers", "numpy", "cpu"]
    assert [*versions("AVX2")] == names and versions("AVX2")["cpu"] == "AVX2"


def test_a_key_that_did_not_exist_when_the_checkpoint_was_saved_is_not_a_difference() -> None:
    config = config_of()
    manifest = manifest_of(config)
    for section, key in (
        ("train", "reduction"),
        ("data", "persistent_workers"),
        ("data", "format"),
    ):
        del manifest.config[section][key]
    assert found(manifest, config) == []


@pytest.mark.parametrize(
    ("key", "value", "verdict", "effect"),
    [
        ("optim.eps", 0.1, "allow", "other updates from here on"),
        (
            "train.dtype",
            "bfloat16",
            "allow",
            "the same examples in every step, numbers rounded differently; float16's loss scale "
            "starts again",
        ),
        ("train.strategy", "fsdp", "free", ROUNDED),
        ("train.device", "cpu", "free", ROUNDED),
        ("train.compile", True, "free", ROUNDED),
        ("checkpoint.keep", 1, "free", "the same steps"),
        ("data.num_workers", 2, "free", "the same steps"),
        ("train.seed", 1, "impossible", "the steps would hold other examples"),
        ("train.batch_size", 8, "impossible", "the steps would hold other examples"),
        ("model.name", "tiny", "impossible", "a run keeps the model and tokenizer"),
        ("model.tokenizer", "x", "impossible", "a run keeps the model and tokenizer"),
        ("train.max_steps", 300, "free", "300 steps in all: nothing is left to train"),
        ("train.max_steps", 400, "free", "400 steps in all; learning rate of step 301 "),
    ],
)
def test_a_changed_key_has_a_verdict_and_an_effect(
    key: str, value: object, verdict: str, effect: str
) -> None:
    manifest = manifest_of(config_of())
    (difference,) = found(manifest, config_of(**{key.replace(".", "__"): value}))
    assert (difference.key, difference.verdict) == (key, verdict)
    assert difference.effect.startswith(effect)
    assert (key in allowable_keys()) is (verdict == "allow")


def test_allowed_differences_are_free_and_impossible_ones_stay_impossible() -> None:
    manifest = manifest_of(config_of())
    changed = config_of(optim__eps=0.1, train__seed=1)
    verdicts = [d.verdict_with({"optim.eps", "train.seed"}) for d in found(manifest, changed)]
    assert verdicts == ["free", "impossible"]


def test_other_data_is_refused_by_its_number_of_steps() -> None:
    config = config_of()
    manifest = manifest_of(config)
    (same_steps,) = found(manifest, config, data=replace(DATA, fingerprint="0" * 64))
    assert (same_steps.key, same_steps.verdict) == ("data", "allow")
    assert str(same_steps) == "data: ffffffffffff -> 000000000000: store is not what it was " + (
        "trained on"
    )
    other = DataHere(Path("store"), "0" * 64, 4000)
    (fewer,) = found(manifest, config_of(data__max_seq_len=9), data=other)
    assert (fewer.key, fewer.verdict) == ("data", "impossible")
    assert fewer.effect == (
        "250 steps per epoch, not 500: no step to continue from (data.max_seq_len None -> 9)"
    )


def test_before_the_first_checkpoint_only_model_and_data_are_fixed() -> None:
    changed = config_of(
        model__name="tiny", data__train_on="last", data__num_workers=2, optim__eps=0.1,
        train__seed=3,
    )  # fmt: skip
    assert [(d.key, d.verdict) for d in differences_at_step_0(config_of(), changed)] == [
        ("model.name", "impossible"),
        ("data.train_on", "impossible"),
    ]


@pytest.mark.parametrize(("held_in", "verdict"), [("float32", "free"), ("bfloat16", "impossible")])
def test_the_type_of_a_frozen_base_is_compared_and_not_its_name(held_in: str, verdict: str) -> None:
    values = {"adapter__lora": True, "train__dtype": "float32"}
    manifest = manifest_of(config_of(**values), dtype="float32")
    (difference,) = found(manifest, config_of(**values, adapter__base_dtype=held_in))
    assert (difference.key, difference.verdict) == ("adapter.base_dtype", verdict)
    assert difference.effect.startswith("the same type" if verdict == "free" else "the adapter was")
