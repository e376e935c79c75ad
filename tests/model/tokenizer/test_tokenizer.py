"""ChatTokenizer: rendering, encoding, hashes, and every refusal of load_tokenizer."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.content_use import ContentUse
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

MESSAGES = [
    {"role": "user", "content": "Hi, 你好"},
    {"role": "assistant", "content": "Hello  there\n🤖"},
]
RENDERED = (
    "<|im_start|>user\nHi, 你好<|im_end|>\n<|im_start|>assistant\nHello  there\n🤖<|im_end|>\n"
)


def refusal(name: Path | str, chat_template: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(name), chat_template)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled tokenizer to break."""
    return Path(shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "tokenizer"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_conversation_is_rendered_by_the_template(bundled: ChatTokenizer) -> None:
    assert bundled.render(MESSAGES) == RENDERED
    prompt = bundled.render(MESSAGES[:1], add_generation_prompt=True)
    assert RENDERED.startswith(prompt) and prompt.endswith("assistant\n")


def test_a_text_comes_back_from_its_tokens(bundled: ChatTokenizer) -> None:
    ids, offsets = bundled.encode_with_offsets(RENDERED)
    assert bundled.decode(ids) == RENDERED
    words = RENDERED.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert bundled.decode(ids, skip_special_tokens=True) == words
    assert (ids[0], offsets[0]) == (1, (0, len("<|im_start|>")))
    assert max(ids) < bundled.vocab_size == 2048


def test_nothing_is_added_to_a_text(bundled: ChatTokenizer) -> None:
    ids, offsets = bundled.encode_with_offsets("<|im_end|>")
    assert (ids.tolist(), offsets) == ([2], [(0, 10)])
    assert bundled.encode("").tolist() == []


def test_special_tokens_are_known(bundled: ChatTokenizer) -> None:
    assert bundled.special_ids == {0, 1, 2}


def test_a_saved_tokenizer_is_the_same(bundled: ChatTokenizer, tmp_path: Path) -> None:
    bundled.save(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.content_hash == bundled.content_hash
    assert again.template_hash == bundled.template_hash
    assert again.render(MESSAGES) == RENDERED
    assert again.special_ids == bundled.special_ids


def test_a_tokenizer_goes_to_another_process(bundled: ChatTokenizer) -> None:
    """As the ranks of bench-loader get it."""
    again = pickle.loads(pickle.dumps(bundled))
    assert again.render(MESSAGES) == RENDERED
    assert again.limits.seconds == bundled.limits.seconds


def test_another_template_changes_only_the_template_hash(
    bundled: ChatTokenizer, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    other = load_tokenizer(str(SAMPLE_TOKENIZER), template)
    assert other.render(MESSAGES[:1]) == "[user] Hi, 你好"
    assert other.content_hash == bundled.content_hash
    assert other.template_hash != bundled.template_hash


def test_another_vocabulary_changes_the_content_hash(bundled: ChatTokenizer, folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end|>")
    (folder / "tokenizer.json").write_text(text)
    edit(folder, pad_token="<|end|>")
    assert load_tokenizer(str(folder)).content_hash != bundled.content_hash


def test_another_end_token_changes_the_content_hash(bundled: ChatTokenizer, folder: Path) -> None:
    edit(folder, eos_token="<|endoftext|>")
    assert load_tokenizer(str(folder)).content_hash != bundled.content_hash


def test_a_template_that_refuses_the_messages_is_an_error_of_the_data(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER), template)
    with pytest.raises(DataError) as caught:
        tokenizer.render(MESSAGES)
    assert caught.value.message == (
        "the chat template refuses the conversation: roles must alternate"
    )


def test_a_tokenizer_without_a_template_is_refused(folder: Path) -> None:
    edit(folder, chat_template=None)
    error = refusal(folder)
    assert error.message == f"tokenizer {folder}: has no chat template"
    assert error.hint == "give one: --chat-template FILE, or --chat-template chatml"


def test_a_template_file_stands_in_for_a_missing_template(folder: Path, tmp_path: Path) -> None:
    edit(folder, chat_template=None)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert load_tokenizer(str(folder), template).render(MESSAGES) == "Hi, 你好"


def test_a_missing_template_file_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "none.jinja"
    assert refusal(SAMPLE_TOKENIZER, template).message == f"{template}: No such file or directory"


def test_a_template_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(b"\xff\xfe")
    assert str(template) in refusal(SAMPLE_TOKENIZER, template).message


def test_a_template_with_broken_syntax_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for %}")
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER), template)
    with pytest.raises(ConfigError, match="the chat template is not valid: line 1: "):
        tokenizer.render(MESSAGES)


def with_templates(folder: Path, templates: object) -> Path:
    """The bundled tokenizer with these templates in its tokenizer_config.json."""
    shutil.copytree(SAMPLE_TOKENIZER, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    return folder


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def test_of_several_named_templates_rows_with_tools_take_their_own(tmp_path: Path) -> None:
    templates = named(default="plain {{ messages[0].content }}", tool_use="tools {{ tools }}")
    folder = with_templates(tmp_path / "several", templates)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.render(MESSAGES) == f"plain {MESSAGES[0]['content']}"
    assert tokenizer.render(MESSAGES, []) == f"plain {MESSAGES[0]['content']}"
    assert tokenizer.render(MESSAGES, [{"name": "f"}]) == "tools [{'name': 'f'}]"
    assert tokenizer.content_use == ContentUse()  # of the default one
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again.templates == tokenizer.templates
    assert again.template_hash == tokenizer.template_hash


def test_each_named_template_is_part_of_the_hash(tmp_path: Path) -> None:
    hashes = set()
    for number, tool_use in enumerate(("a", "b")):
        templates = named(default="{{ messages }}", tool_use=tool_use)
        folder = with_templates(tmp_path / str(number), templates)
        hashes.add(load_tokenizer(str(folder)).template_hash)
    one = with_templates(tmp_path / "one", named(default="{{ messages }}"))
    text = with_templates(tmp_path / "text", "{{ messages }}")
    alone = {load_tokenizer(str(folder)).template_hash for folder in (one, text)}
    assert (len(hashes), len(alone), hashes & alone) == (2, 1, set())


def test_named_templates_without_a_default_one_are_refused(tmp_path: Path) -> None:
    error = refusal(with_templates(tmp_path / "t", named(rag="{{ x }}", tool_use="{{ x }}")))
    assert error.message == (
        f"tokenizer {tmp_path}/t: has chat templates named rag, tool_use, but none named default"
    )
    assert error.hint and "--chat-template FILE" in error.hint


def test_a_broken_template_among_several_is_refused_before_any_row(tmp_path: Path) -> None:
    folder = with_templates(tmp_path / "t", named(default="{{ messages }}", tool_use="\n{% x"))
    with pytest.raises(ConfigError, match="the chat template is not valid: line 2: "):
        load_tokenizer(str(folder)).compile_templates()


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == (
        f"{tmp_path}: no tokenizer.json in this directory, so there is no tokenizer in it"
    )


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", ')
    assert refusal(folder).message.startswith(f"tokenizer {folder}: can't be loaded: ")


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    """ByT5's tokenizer is written in Python; there is no fast one."""
    (tmp_path / "vocab.txt").touch()
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert (
        refusal(tmp_path).message == f"tokenizer {tmp_path}: has no fast tokenizer (tokenizer.json)"
    )


@pytest.mark.usefixtures("without_network")
def test_a_hub_name_without_a_network_is_refused() -> None:
    error = refusal("nobody/nothing-at-all")
    assert error.message.startswith("tokenizer nobody/nothing-at-all: can't be loaded: ")
    assert error.hint == (
        "give a directory with config.json, a .gguf file, or a hub name and a network"
    )
