"""Which parameters are trained: patterns, short forms, tied names, and what they refuse."""

from typing import Any

import pytest

from sftctl.errors import ConfigError
from sftctl.model.trainable import learning_rate_factors, select_trained
from tests.toys.steps import make_mixture, make_model

EMBEDDINGS = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def trained(
    model: Any, train_only: list[str] | None = None, freeze: list[str] | None = None
) -> set[str]:
    select_trained(model, train_only, freeze)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["embeddings"], {EMBEDDINGS}),
        (["head"], {EMBEDDINGS}),  # tied
        (["lm_head*"], {EMBEDDINGS}),
        (["model.norm"], {NORM}),  # a module without a wildcard
        (["model.norm.weight", "*.embed_*"], {NORM, EMBEDDINGS}),
        ([" embeddings "], {EMBEDDINGS}),
    ],
)
def test_a_pattern_selects_parameters(patterns: list[str], expected: set[str]) -> None:
    assert trained(make_model(), train_only=patterns) == expected
    everything = {name for name, _ in make_model().named_parameters()}
    assert trained(make_model(), freeze=patterns) == everything - expected


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("layers[:1]", {0}), ("layers[1:]", {1}), ("layers[-1:]", {1}), ("layers[:]", {0, 1})],
)
def test_layers_are_counted_as_in_python(pattern: str, layers: set[int]) -> None:
    for model in (make_model(), make_mixture()):  # an expert's number is not a layer's
        expected = {n for n, _ in model.named_parameters() if n.startswith("model.layers.")}
        found = trained(model, train_only=[pattern])
        assert found == {name for name in expected if int(name.split(".")[2]) in layers}


def test_an_untied_head_has_its_own_name() -> None:
    model = make_model(tie_word_embeddings=False)
    assert trained(model, train_only=["head"]) == {"lm_head.weight"}


def test_freeze_is_applied_after_train_only() -> None:
    found = trained(make_model(), train_only=["layers[:]"], freeze=["*.mlp.*", "*norm*"])
    assert {name.split(".")[3] for name in found} == {"self_attn"}


def test_parameters_that_were_frozen_before_stay_frozen() -> None:
    model = make_model()
    model.model.norm.weight.requires_grad_(False)
    assert trained(model, train_only=["embeddings", "model.norm"]) == {EMBEDDINGS}


@pytest.mark.parametrize("key", ["train_only", "freeze"])
def test_a_pattern_that_matches_nothing_names_what_there_is(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train.{key}: \*.q_prj.\* matches no") as raised:
        trained(make_model(), **{key: ["embeddings", "*.q_prj.*"]})
    assert raised.value.hint is not None
    for name in (EMBEDDINGS, "lm_head.weight", "model.layers.*.self_attn.q_proj.weight", NORM):
        assert name in raised.value.hint
    assert raised.value.hint.count("q_proj") == 1  # one name for all layers


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave no parameter to train"):
        trained(make_model(), freeze=["*"])


def test_factors_belong_to_the_parameters_that_match() -> None:
    factors = learning_rate_factors(make_model(), {"lm_head": 0.5, "layers[:1]": 0.1})
    assert factors.pop(EMBEDDINGS) == 0.5
    assert set(factors.values()) == {0.1}
    assert all(name.startswith("model.layers.0.") for name in factors)
    assert learning_rate_factors(make_model(), None) == {}


def test_two_factors_for_one_parameter_are_refused() -> None:
    assert learning_rate_factors(make_model(), {"embeddings": 0.5, "head": 0.5})
    with pytest.raises(ConfigError, match=r"embeddings and head both match model.embed_tokens"):
        learning_rate_factors(make_model(), {"embeddings": 0.5, "head": 0.25})
    with pytest.raises(ConfigError, match=r"^optim.groups: nothing\* matches no parameter"):
        learning_rate_factors(make_model(), {"nothing*": 0.5})
