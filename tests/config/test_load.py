"""TOML, --set and flags become one configuration; every mistake is reported with its key."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.config.keys import keys
from sftctl.config.load import (
    Layer,
    config_from_dict,
    config_to_commented_toml,
    config_to_dict,
    config_to_toml,
    file_layer,
    load_config,
    load_layers,
    parse_assignments,
)
from sftctl.config.schema import ModelConfig, RunConfig, TrainConfig
from sftctl.errors import ConfigError


@pytest.fixture
def run_toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[train]\nepochs = 5\nbatch_size = 3\n[model]\nname = "tiny"\n')
    return path


def refusal(*args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args)  # type: ignore[arg-type]
    return caught.value.message


def refusal_of(tmp_path: Path, text: str) -> str:
    """The error for a file with this text, without the file's name."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    return refusal(path).replace(f"{path}: ", "")


# ---------------------------------------------------------------------------- precedence


def test_without_file_and_overrides_everything_is_default() -> None:
    assert load_config() == RunConfig()


def test_a_file_beats_the_defaults_and_leaves_the_rest(run_toml: Path) -> None:
    assert load_config(run_toml) == RunConfig(
        model=ModelConfig(name="tiny"), train=TrainConfig(epochs=5, batch_size=3)
    )


def test_an_override_beats_the_file(run_toml: Path) -> None:
    config = load_config(str(run_toml), {"train.epochs": 7})
    assert (config.train.epochs, config.train.batch_size) == (7, 3)


def test_of_two_assignments_the_later_one_counts() -> None:
    assert load_config(None, ["train.epochs=1", "train.epochs=9"]).train.epochs == 9


def test_every_value_knows_its_origin(run_toml: Path) -> None:
    config, origins = load_layers(
        [
            file_layer(run_toml),
            Layer("--set", {"optim.grad_clip": "0.5", "train.batch_size": "4"}),
            Layer("flag", {"train.batch_size": 5, "output_dir": "runs/x"}),
        ]
    )
    told = {"train.epochs": str(run_toml), "model.name": str(run_toml), "optim.grad_clip": "--set"}
    told |= {"train.batch_size": "flag"}
    assert origins == dict.fromkeys(keys(), "default") | told
    assert (config.train.batch_size, config.optim.grad_clip) == (5, 0.5)
    assert config.output_dir == Path("runs/x")


def test_all_problems_of_all_layers_are_reported_together(run_toml: Path) -> None:
    run_toml.write_text("[train]\nepochs = '3'\nbath_size = 2\n")
    with pytest.raises(ConfigError) as caught:
        load_layers(
            [
                file_layer(run_toml),
                Layer("--set", {"optim.grad_clip": "high"}),
                Layer("flag", {"checkpoint.keep": 0}),
            ]
        )
    assert caught.value.message.split("; ") == [
        f"{run_toml}: train.epochs: expected int, got '3'",
        f"{run_toml}: unknown key train.bath_size",
        "did you mean train.batch_size?",
        "optim.grad_clip: expected float, got 'high'",
        "checkpoint.keep: 0 is too small",
        "at least 1",
    ]


# ---------------------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("optim.learning_rate=1e-5", "optim.learning_rate", 1e-5),
        ("optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("optim.learning_rate=auto", "optim.learning_rate", "auto"),
        ("data.persistent_workers=false", "data.persistent_workers", False),
        ("train.dtype = bfloat16", "train.dtype", "bfloat16"),
        ("model.name=12", "model.name", "12"),
        ("data.path=a=b.jsonl", "data.path", "a=b.jsonl"),
        ("data.max_seq_len=512", "data.max_seq_len", 512),
    ],
)
def test_an_assignment_is_read_as_the_type_of_its_key(text: str, key: str, value: object) -> None:
    section, name = key.split(".")
    found = getattr(getattr(load_config(None, [text]), section), name)
    assert found == value and type(found) is type(value)


def test_an_assignment_without_equals_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["train.epochs"])
    assert caught.value.message == "--set train.epochs: expected section.key=value"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("as in --set train.epochs=3; ")
    with pytest.raises(ConfigError, match="--set a: expected .*; --set =3: expected"):
        parse_assignments(["a", "c=1", "=3"])


@pytest.mark.parametrize("key", ["model.name", "data.path", "output_dir"])
def test_an_empty_text_is_refused(key: str) -> None:
    assert refusal(None, [f"{key}="]) == f"{key}: is empty"


@pytest.mark.parametrize(("text", "value"), [(".5", 0.5), ("5.", 5.0), ("1e-05", 1e-5)])
def test_a_number_is_read_as_people_write_it(text: str, value: float) -> None:
    assert load_config(None, [f"optim.grad_clip={text}"]).optim.grad_clip == value


# ---------------------------------------------------------------------------- wrong keys


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.learnin_rate", "; did you mean optim.learning_rate?"),
        ("train.learning_rate", "; did you mean optim.learning_rate?"),
        ("train.learnin_rate", "; did you mean optim.learning_rate?"),
        ("optim.epoch", "; did you mean train.epochs?"),
        ("learning_rate", "; did you mean optim.learning_rate?"),
        ("model.zzz", "; [model] has name, tokenizer, new_tokens"),
        ("trian.epochs", "; did you mean train.epochs?"),
        ("train.epoch", "; did you mean train.epochs?"),
        ("model/name", "; did you mean model.name?"),
        (
            "zzz.qqq",
            "; sections are model, data, adapter, optim, train, checkpoint, evaluation, tracking",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key: str, hint: str) -> None:
    assert refusal(None, {key: 1}) == f"unknown key {key}{hint}"


def test_a_key_outside_any_section_is_unknown(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "epochs = 1").startswith("unknown key epochs; did you mean ")


def test_a_section_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "train = 1").startswith("unknown key train; ")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "many", "expected int, got 'many'"),
        ("train.epochs", 2.0, "expected int, got 2.0"),
        ("train.epochs", True, "expected int, got True"),
        ("train.epochs", [1], "expected int, got [1]"),
        ("optim.grad_clip", True, "expected float, got True"),
        ("optim.grad_clip", "a", "expected float, got 'a'"),
        ("optim.learning_rate", "fast", "expected float or auto, got 'fast'"),
        ("data.persistent_workers", 1, "expected true or false, got 1"),
        ("model.name", 3, "expected str, got 3"),
        ("data.max_seq_len", "long", "expected int, got 'long'"),
        ("train.device", "gpu", "expected auto or cpu or cuda or mps, got 'gpu'"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object, expected: str) -> None:
    assert refusal(None, {key: value}) == f"{key}: {expected}"


def test_an_output_directory_that_is_not_text_is_refused(tmp_path: Path) -> None:
    assert "output_dir" in refusal_of(tmp_path, "output_dir = 3")


def test_every_wrong_key_and_value_is_reported_at_once(run_toml: Path) -> None:
    run_toml.write_text("[train]\nepoch = 1\nbatch_size = 'x'\n")
    assert refusal(run_toml, {"zzz.qqq": 1, "train.seed": "s"}) == (
        f"{run_toml}: unknown key train.epoch; did you mean train.epochs?; "
        f"{run_toml}: train.batch_size: expected int, got 'x'; "
        "unknown key zzz.qqq; "
        "sections are model, data, adapter, optim, train, checkpoint, evaluation, tracking; "
        "train.seed: expected int, got 's'"
    )


def test_numbers_beyond_their_bounds_are_reported_at_once_too() -> None:
    message = refusal(None, {"train.epochs": 0, "data.num_workers": -1, "train.seed": "s"})
    for key in ("train.epochs", "data.num_workers", "train.seed"):
        assert f"{key}: " in message


def test_a_number_beyond_its_bounds_is_reported_with_its_file(run_toml: Path) -> None:
    run_toml.write_text("[train]\nepochs = 0\n")
    assert refusal(run_toml) == f"{run_toml}: train.epochs: 0 is too small; at least 1"


@pytest.mark.parametrize(
    "number", [2**64, 10**400, -(10**400)], ids=["2**64", "10**400", "-(10**400)"]
)
@pytest.mark.parametrize(
    "key", ["train.epochs", "train.seed", "data.max_seq_len", "optim.learning_rate"]
)
def test_a_number_beyond_64_bits_is_refused(run_toml: Path, key: str, number: int) -> None:
    message = refusal(None, [f"{key}={number}"])
    assert message == f"{key}: the number has more than 64 bits"
    section, name = key.split(".")
    run_toml.write_text(f"[{section}]\n{name} = {number}\n")
    assert refusal(run_toml) == f"{run_toml}: {message}"


def test_a_number_of_thousands_of_digits_is_refused(run_toml: Path) -> None:
    digits = "1" * 5000
    assert (
        refusal(None, [f"train.epochs={digits}"]) == f"train.epochs: expected int, got '{digits}'"
    )
    assert refusal(None, [f"optim.eps={digits}"]) == "optim.eps: inf is not a finite number"
    run_toml.write_text(f"[train]\nepochs = {digits}\n")
    assert refusal(run_toml).startswith(f"{run_toml}: not TOML: Exceeds the limit")


# ---------------------------------------------------------------------------- wrong files


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(path) == f"{path}: No such file or directory"


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: this is a folder, not a configuration"


def test_broken_toml_is_refused_with_its_line(run_toml: Path) -> None:
    run_toml.write_text("[train]\nepochs =\n")
    assert refusal(run_toml) == f"{run_toml}: not TOML: Invalid value (at line 2, column 9)"


def test_a_file_that_is_not_text_is_refused(run_toml: Path) -> None:
    run_toml.write_bytes(b"\xff\xfe")
    assert refusal(run_toml).startswith(f"{run_toml}: not TOML: 'utf-8' codec can't decode")


# ---------------------------------------------------------------------------- and back


OTHER = {
    "model.name": 'a "quoted" \\ name',
    "data.path": "対話/a\nb.jsonl",
    "data.max_seq_len": 77,
    "optim.learning_rate": 1e-05,
    "optim.eps": 1e-12,
    "train.device": "cpu",
    "data.persistent_workers": False,
    "tracking.wandb": True,
}


@pytest.mark.parametrize("overrides", [{}, OTHER])
@pytest.mark.parametrize("write", [config_to_toml, config_to_commented_toml])
def test_a_written_configuration_is_read_back(
    tmp_path: Path, write: object, overrides: dict[str, object]
) -> None:
    config = load_config(None, overrides)
    path = tmp_path / "config.toml"
    path.write_text(write(config), encoding="utf-8")  # type: ignore[operator]
    assert load_config(path) == config


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_text_survives_being_written(text: str) -> None:
    config = load_config(None, {"data.path": text})
    assert tomllib.loads(config_to_toml(config))["data"]["path"] == text


@given(number=st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_any_number_survives_being_written(number: float) -> None:
    config = load_config(None, {"optim.learning_rate": number})
    assert tomllib.loads(config_to_toml(config))["optim"]["learning_rate"] == number


def test_what_is_written_names_neither_the_output_directory_nor_unset_keys() -> None:
    text = config_to_toml(load_config(None, {"output_dir": "runs/a", "train.epochs": 3}))
    assert "runs/a" not in text and "tokenizer" not in text
    assert "epochs = 3" in text


def test_the_commented_form_shows_each_key_below_its_documentation() -> None:
    lines = config_to_commented_toml(RunConfig()).splitlines()
    at = lines.index("epochs = 2")
    assert lines[at - 1] == "# How many times each example is trained."
    assert "# tokenizer =" in lines
    assert max(map(len, lines)) <= 100


def test_a_dictionary_is_read_back() -> None:
    config = load_config(None, OTHER)
    assert config_from_dict(config_to_dict(config)) == config


def test_a_byte_order_mark_before_the_configuration_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("\ufeff[train]\nepochs = 7\n", encoding="utf-8")
    assert load_config(path).train.epochs == 7


def test_a_date_that_is_not_a_day_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.date: 2026-13-01 is not a date"):
        load_config(None, ["data.date=2026-13-01"])


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
def test_a_text_that_no_file_can_be_named_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="has a NUL character, or is not UTF-8"):
        load_config(None, {"data.path": text})


def test_a_list_is_toml_or_texts_with_commas_and_is_written_back(tmp_path: Path) -> None:
    for text in ('["embeddings", "layers[:4]"]', "embeddings,layers[:4]"):
        config = load_config(None, [f"train.freeze={text}"])
        assert config.train.freeze == ["embeddings", "layers[:4]"]
    file = tmp_path / "run.toml"
    file.write_text('[train]\nfreeze = ["*.mlp.*"]\n[optim.groups]\n"layers[:4]" = 0.5\nhead = 2\n')
    config = load_config(file)
    assert config.train.freeze == ["*.mlp.*"]
    assert config.optim.groups == {"layers[:4]": 0.5, "head": 2}
    file.write_text(config_to_toml(config))
    assert load_config(file) == config == config_from_dict(config_to_dict(config))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("train.freeze", [1], "expected a list of texts, got [1]"),
        ("train.freeze", {"a": 1}, "expected a list of texts, got {'a': 1}"),
        ("train.freeze", ["a", ""], "is empty"),
        ("train.freeze", "a,,b", "is empty"),
        ("optim.groups", ["a"], "expected dict, got ['a']"),
        ("optim.groups", {"a": "b"}, "a = 'b', which is not a factor"),
        ("optim.groups", {"a": -1}, "a = -1, which is not a factor"),
        ("optim.groups", {"a": True}, "a = True, which is not a factor"),
        ("optim.groups", {"a": float("inf")}, "a = inf, which is not a factor"),
    ],
)
def test_a_wrong_list_or_table_is_refused(key: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, {key: value})
    assert raised.value.message == f"{key}: {problem}"
