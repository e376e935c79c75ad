"""Options of a chat template become its defaults, wherever the tokenizer is used."""

from pathlib import Path
from typing import Any

import pytest

from sftctl.config.load import config_from_dict, config_to_dict, config_to_toml, load_config
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.config.template_options import template_options
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.fingerprint import store_fingerprint
from sftctl.data.prepare.prepare import prepare_files
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.data.storage.settings import require_settings
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.template_options import options_of, with_options
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.toys.data import CHATML, file_of, row, written

THINKS = CHATML.replace(
    "assistant\n{% endif",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif",
)
QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("a=false", False), ("a=False", False), ("a= FALSE", False), ("a=True", True)),
        *(("a = 3", 3), ("a=low", "low"), ('a="false"', "false"), ("a='off'", "off")),
        *(('a=""', ""), ("a=noon", "noon")),
    ],
)
def test_an_option_is_read_as_toml_or_as_text(text: str, value: Any) -> None:
    read = template_options([text])["data.template_options"]
    assert isinstance(read, dict)
    assert read == {"a": value}
    assert type(read["a"]) is type(value)  # 0 == False


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        *(("no", "a=false"), ("Off", "a=false"), ("yes", "a=true"), ("ON", "a=true")),
        *(("None", "a='\"None\"'"), ("null", "or leave the option out"), ("", "a='\"\"'")),
    ],
)
def test_a_text_that_may_be_a_truth_value_is_refused(value: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="is this a truth value or a text") as caught:
        template_options([f"a={value}"])
    assert hint in str(caught.value.hint)


def test_an_option_with_two_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="a is given twice, with different values"):
        template_options(["a=true", "a=false"])
    assert template_options(["a=true", "a=True"]) == {"data.template_options": {"a": True}}


def test_a_template_with_options_is_the_template_with_the_variables_set(tmp_path: Path) -> None:
    template = file_of(tmp_path, "t.jinja", "\n  {{ a }}{{ b }}" + THINKS)
    plain = load_tokenizer(str(SAMPLE_TOKENIZER), template)
    options: dict[str, Any] = {"enable_thinking": False, "a": 'é "x" \n {{ 1 }}', "b": 1.5}
    with_defaults = load_tokenizer(str(SAMPLE_TOKENIZER), template, options)
    for prompt in (False, True):
        expected = plain.hf.apply_chat_template(
            QUESTION, add_generation_prompt=prompt, tokenize=False, **options
        )
        assert with_defaults.render(QUESTION, None, prompt) == expected
    thinking = with_defaults.hf.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert thinking.endswith("assistant\n<think>\n")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"enable_thinkin": False}, "does not read 'enable_thinkin'", "mean enable_thinking?"),
        ({"date": "x"}, "does not read 'date'", "it reads: enable_thinking"),
    ],
)
def test_an_option_that_the_template_does_not_read_is_an_error(
    options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_options(THINKS, options)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": "x"}, "'messages' is not the name of an option"),
        ({"a b": "x"}, "'a b' is not the name of an option"),
        ({"a": [1]}, "a is a list"),
    ],
)
def test_names_and_values_that_no_template_has_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(template_options=options)


def test_an_option_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="--template-option a: expected KEY=VALUE"):
        template_options(["a"])


def test_options_survive_the_files_of_a_run(tmp_path: Path) -> None:
    text = '[data.template_options]\nenable_thinking = false\neffort = "low"\n'
    config = load_config(file_of(tmp_path, "run.toml", text))
    assert config.data.template_options == {"enable_thinking": False, "effort": "low"}
    again = load_config(file_of(tmp_path, "again.toml", config_to_toml(config)))
    assert again == config == config_from_dict(config_to_dict(config))
    assert load_config(None, ["data.template_options={a=1}"]).data.template_options == {"a": 1}


def test_a_store_records_its_options_and_its_tokenizer_has_them(tmp_path: Path) -> None:
    template = file_of(tmp_path, "t.jinja", THINKS)
    rows = written(tmp_path / "rows.jsonl", [row("Hi", "Hello")])
    data = DataConfig(chat_template=str(template), template_options={"enable_thinking": False})
    made = prepare_files([rows], [], tmp_path / "s", RunConfig(data=data)).manifest
    assert made.rows_kept == 1
    read = StoreManifest.read(tmp_path / "s")
    assert read.template_options == {"enable_thinking": False}
    saved = load_tokenizer(str(tmp_path / "s" / "tokenizer"))
    assert saved.render(QUESTION, None, True).endswith("<think>\n\n</think>\n\n")
    require_settings(tmp_path / "s", read, data)
    other = DataConfig(template_options={"enable_thinking": True})
    with pytest.raises(
        DataError, match="template options enable_thinking=False, but the run asks for"
    ):
        require_settings(tmp_path / "s", read, other)
    plain = load_tokenizer(str(SAMPLE_TOKENIZER), template)
    assert store_fingerprint([rows], plain, DataConfig()) != made.fingerprint


def test_the_options_of_a_template_are_found_without_computing_its_constants() -> None:
    """Jinja itself computes these when it compiles a template: for hours, or into gigabytes."""
    slow = "{{ 9 ** (9 ** 9) }}{{ 'x' | center(10 ** 11) }}{{ [1] * 10 ** 11 }}"
    assert options_of(slow + "{% if a.b == 'x' %}{{ c['d'] ~ 1 }}{% endif %}") == ["a", "c"]


@pytest.mark.parametrize("template", ["{% if %}", "{{ x | nofilter }}", "{{ " + "(" * 3000])
def test_a_template_that_is_not_valid_has_no_options(template: str) -> None:
    assert options_of(template) is None
