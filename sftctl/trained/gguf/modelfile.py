"""Write the Modelfile, from which Ollama makes a model of a .gguf file."""

from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

Message = dict[str, Any]
_CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
]


def modelfile(tokenizer: ChatTokenizer, stop_ids: list[int], file_name: str) -> str:
    """The text of a Modelfile: the weights, the tokens that end an answer, and the template.

    Ollama's templates have another language than chat templates. A template is written only if it
    renders plain conversations as the tokenizer's chat template does. Without one, Ollama chooses a
    template itself.
    """
    lines = [f"FROM ./{file_name}"]
    lines += [f'PARAMETER stop "{tokenizer.decode([token])}"' for token in stop_ids]
    parts = _parts(tokenizer)
    if parts is None:
        lines.append("# No TEMPLATE: Ollama has none that renders like this model's chat template.")
    else:
        lines.append(f'TEMPLATE """{parts.in_go()}"""')
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Parts:
    """A chat template that puts constant texts around each message."""

    start: str
    """The text before the first message, if the first message is not a system prompt."""
    around: dict[str, tuple[str, str]]
    """Role -> the texts before and after the content of a message."""
    answer: str
    """The text before the answer that is to be generated."""

    def render(self, messages: list[Message]) -> str:
        text = "" if messages[0]["role"] == "system" else self.start
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + self.answer

    def in_go(self) -> str:
        """The template in the language of Go's templates, which Ollama uses."""
        start = ""
        if self.start:
            start = '{{ if ne (index .Messages 0).Role "system" }}' + self.start + "{{ end }}"
        cases = [
            f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in self.around.items()
        ]
        body = "{{ " + "{{ else ".join(cases) + "{{ end }}"
        return start + "{{ range .Messages }}" + body + "{{ end }}" + self.answer


def _parts(tokenizer: ChatTokenizer) -> _Parts | None:
    """The constant texts.

    None if they do not render plain conversations as the chat template does.
    """
    try:
        parts = _guess(tokenizer)
        for roles in _CONVERSATIONS:
            messages = _messages(roles)
            if parts.render(messages) != _rendered(tokenizer, messages):
                return None
    except (DataError, ValueError):  # refused by the template, or a content is not in the text
        return None
    texts = [parts.start, parts.answer, *(text for two in parts.around.values() for text in two)]
    return None if any("{{" in text or '"""' in text for text in texts) else parts


def _guess(tokenizer: ChatTokenizer) -> _Parts:
    """Divide the text between two contents into the end of one message and the start of
    the next.
    """
    head, end = _between(tokenizer, ["user"])
    _, to_answer, to_user, _ = _between(tokenizer, ["user", "assistant", "user"])
    system, from_system, _ = _between(tokenizer, ["system", "user"])
    before_user = commonprefix([text[::-1] for text in (head, to_user, from_system)])[::-1]
    after_answer = to_user.removesuffix(before_user)
    after_user = commonprefix([end, to_answer, after_answer])
    return _Parts(
        start=head.removesuffix(before_user),
        around={
            "system": (system, from_system.removesuffix(before_user)),
            "user": (before_user, after_user),
            "assistant": (to_answer.removeprefix(after_user), after_answer),
        },
        answer=end.removeprefix(after_user),
    )


def _messages(roles: list[str]) -> list[Message]:
    return [{"role": role, "content": f"sftctl-{i}-{role}"} for i, role in enumerate(roles)]


def _rendered(tokenizer: ChatTokenizer, messages: list[Message]) -> str:
    """The rendered prompt, without the BOS token if the tokenizer adds it."""
    text = tokenizer.render(messages, add_generation_prompt=True)
    bos = tokenizer.hf.bos_token
    alone = tokenizer.hf("a", add_special_tokens=True)["input_ids"]
    is_added = bos is not None and alone[0] == tokenizer.bos_id
    return text.removeprefix(bos) if is_added else text


def _between(tokenizer: ChatTokenizer, roles: list[str]) -> list[str]:
    """The texts before, between and after the contents. ValueError if a content is missing."""
    messages, pieces = _messages(roles), list[str]()
    rest = _rendered(tokenizer, messages)
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found:
            raise ValueError(message["content"])
        pieces.append(before)
    return [*pieces, rest]
