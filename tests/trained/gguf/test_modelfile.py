"""The Modelfile has a template of Go that renders as the chat template does, or none."""

import pytest

from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.trained.gguf.modelfile import modelfile

CHATML = (
    '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
    "{{ end }}{{ end }}<|im_start|>assistant\n"
)


def with_template(tokenizer: ChatTokenizer, template: str) -> ChatTokenizer:
    hf = load_tokenizer(tokenizer.name).hf
    hf.chat_template = template
    return ChatTokenizer(hf, "toy")


def test_a_template_of_constant_texts_is_translated(tokenizer: ChatTokenizer) -> None:
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = modelfile(with_template(tokenizer, chatml), [2], "model.gguf")
    assert f'TEMPLATE """{CHATML}"""' in text
    default = "{% if messages[0].role != 'system' %}Be kind.\n{% endif %}" + chatml
    text = modelfile(with_template(tokenizer, default), [2], "model.gguf")
    assert '{{ if ne (index .Messages 0).Role "system" }}Be kind.' in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ '{{' }}{{ m.role }}{{ m.content }}{% endfor %}",
    ],
)
def test_another_template_is_left_to_ollama(tokenizer: ChatTokenizer, template: str) -> None:
    text = modelfile(with_template(tokenizer, template), [2], "model.gguf")
    assert 'TEMPLATE "' not in text and "# No TEMPLATE" in text
