"""data.sources and --mix: what is accepted, and the one line for each wrong value."""

from pathlib import Path

import pytest

from sftctl.config.load import config_from_dict, config_to_dict, config_to_toml, load_config
from sftctl.config.sources import SourceConfig, mixed, named_inputs, parse_mix
from sftctl.errors import ConfigError

TOML = """
[[data.sources]]
name = "code"
path = "code.jsonl"
weight = 0.5

[[data.sources]]
name = "chat"
path = "chat.jsonl"
"""
ONE = '{name="a", path="a.jsonl"}'


def test_sources_are_read_written_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(TOML)
    config = load_config(file)
    assert config.data.sources == (
        SourceConfig(name="code", path="code.jsonl", weight=0.5),
        SourceConfig(name="chat", path="chat.jsonl"),
    )
    file.write_text(config_to_toml(config))
    assert load_config(file) == config
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ('[{name="a", path="b", weight=-1}]', "data.sources: a: weight: -1 is too small"),
        ('[{name="a", path="b", weight=nan}]', "data.sources: a: weight: nan is not a finite"),
        ('[{name="a", path="b", weight="2"}]', "data.sources: a: weight: expected float, got '2'"),
        ('[{name="a", path="b", weight=0}]', "data.sources: all weights are 0"),
        (f"[{ONE}, {ONE}]", "data.sources: two sources have the name a"),
        ('[{name="a"}]', "data.sources: a has no path"),
        ('[{name="a,b", path="c"}]', "data.sources: 'a,b' can't be a source's name"),
        ('[{path="c"}]', "data.sources: number 1: name is missing"),
        ('[{nam="a"}]', "data.sources: number 1: unknown key nam; there are name, path, weight"),
        ("[]", "data.sources: is empty"),
        ("[1]", "data.sources: expected a list of tables, got"),
    ],
)
def test_wrong_sources(sources: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{problem}"):
        load_config(None, [f"data.sources={sources}"])


def test_sources_with_paths_and_other_data_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a has a path, and data\.path names other data"):
        load_config(None, [f"data.sources=[{ONE}]", "data.path=store"])


def test_a_mix_changes_the_weights_of_sources() -> None:
    sources = load_config(None, [f"data.sources=[{ONE}]"]).data.sources
    assert mixed(sources, parse_mix("a=0.3"), None) == [
        {"name": "a", "path": "a.jsonl", "weight": 0.3}
    ]
    assert mixed(None, parse_mix("x = 1, y=0"), "store") == [
        {"name": "x", "weight": 1.0},
        {"name": "y", "weight": 0.0},
    ]


def test_inputs_have_names_or_none(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.jsonl"
    odd.touch()
    assert named_inputs([Path("a.jsonl"), odd]) == ((), [Path("a.jsonl"), odd])
    paths = [Path("en=a.jsonl"), Path("zh=-")]
    assert named_inputs(paths) == (("en", "zh"), [Path("a.jsonl"), Path("-")])
    with pytest.raises(ConfigError, match=r"^b\.jsonl: has no name, but others have one"):
        named_inputs([Path("en=a.jsonl"), Path("b.jsonl")])
    with pytest.raises(ConfigError, match="^inputs: two sources have the name en"):
        named_inputs([Path("en=a.jsonl"), Path("en=b.jsonl")])


@pytest.mark.parametrize(
    ("mix", "problem"),
    [
        ("a", "--mix a: expected NAME=WEIGHT"),
        ("a=", "--mix a=: expected NAME=WEIGHT"),
        ("a=1,a=2", "--mix a=1,a=2: a occurs twice"),
        ("a=x", "--mix a=x: not a number"),
        ("b=1", "--mix b=1: no source b; there are a"),
    ],
)
def test_wrong_mixes(mix: str, problem: str) -> None:
    sources = load_config(None, [f"data.sources=[{ONE}]"]).data.sources
    with pytest.raises(ConfigError, match=f"^{problem}"):
        mixed(sources, parse_mix(mix), None)
