"""An independent, slow reference for texts and masks: no template engine, no product code.

Each family's template is written again as a plain function that joins pieces. Each piece says
whether the assistant wrote it. The tokenizer's own offsets say which tokens that makes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]
Piece = tuple[str, int | None]  # text, and the number of the message if the assistant wrote it
Render = Callable[[Messages, list[Any] | None], list[Piece]]


class Refused(Exception):
    """The template of the family refuses this conversation, or its mask is not exact."""


@dataclass(frozen=True)
class Expected:
    """A text to train on, and its spans (in characters) that are trained."""

    text: str
    spans: list[tuple[int, int]]


def expected_texts(messages: Messages, tools: list[Any] | None, render: Render) -> list[Expected]:
    """Texts that contain every assistant turn once, after exactly what inference sees."""
    pending = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    found, num_messages = [], len(messages)
    while pending:
        pieces = render(messages[:num_messages], tools)
        text = _joined(pieces)
        fitting = [i for i in pending if text.startswith(_joined(render(messages[: i + 1], tools)))]
        for i in fitting:
            if i and not text.startswith(_joined(render(messages[:i], tools))):
                raise Refused("inference would have seen another text before the turn")
        spans, position = [], 0
        for piece, number in pieces:
            if number in fitting:
                spans.append((position, position + len(piece)))
            position += len(piece)
        found.append(Expected(text, spans))
        pending = [i for i in pending if i not in fitting]
        num_messages = pending[-1] + 1 if pending else 0
    return found[::-1]


def expected_mask(expected: Expected, offsets: list[tuple[int, int]]) -> list[bool]:
    """True for tokens inside a span. Raises Refused for a token that is half inside."""
    mask = []
    for start, end in offsets:
        inside = any(a <= start and end <= b for a, b in expected.spans)
        if not inside and any(start < b and a < end for a, b in expected.spans):
            raise Refused("a token is half inside a turn")
        mask.append(inside)
    if mask:
        mask[0] = False
    return mask


def _joined(pieces: list[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _calls(message: dict[str, Any]) -> list[str]:
    texts = []
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        written = arguments if isinstance(arguments, str) else _json(arguments)
        name = call["function"]["name"]
        texts.append(f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>')
    return texts


def _chatml_turns(
    messages: Messages, answer: Callable[[int], str], with_results: bool = True
) -> list[Piece]:
    """ChatML's turns without a first system message; `answer` writes the assistant's."""
    pieces: list[Piece] = []
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "assistant":
            pieces += [("<|im_start|>assistant\n", None), (answer(i) + "<|im_end|>", i)]
            pieces.append(("\n", None))
        elif role == "tool" and with_results:
            follows = i > 0 and messages[i - 1]["role"] == "tool"
            goes_on = i + 1 < len(messages) and messages[i + 1]["role"] == "tool"
            text = "" if follows else "<|im_start|>user"
            text += f"\n<tool_response>\n{content}\n</tool_response>"
            pieces.append((text + ("" if goes_on else "<|im_end|>\n"), None))
        elif role != "system" or i > 0:
            pieces.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", None))
    return pieces


def _split_thought(message: dict[str, Any]) -> tuple[str, str]:
    """(thought, answer) of a turn whose thought may be inside its content."""
    content = message["content"]
    if "reasoning_content" in message:
        return message["reasoning_content"], content
    if "</think>" not in content:
        return "", content
    before = content[: content.index("</think>")]
    after = content[content.rindex("</think>") + len("</think>") :]
    return before.split("<think>")[-1], after.lstrip("\n")


def _family_tools(tools: list[Any]) -> str:
    listed = "".join("\n" + _json(tool) for tool in tools)
    return (
        f"# Tools\n\nSignatures of functions you may call:\n<tools>{listed}\n</tools>\n"
        "To call one, write JSON within <tool_call></tool_call>."
    )


def _first_system(messages: Messages) -> str | None:
    return messages[0]["content"] if messages[0]["role"] == "system" else None


def smollm2(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    if tools or any(message.get("tool_calls") for message in messages):
        raise Refused("no tools")
    system = _first_system(messages)
    pieces: list[Piece] = [
        (f"<|im_start|>system\n{default if system is None else system}<|im_end|>\n", None)
    ]
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if i == 0 and system is not None:
            continue
        if role == "assistant":
            pieces += [("<|im_start|>assistant\n", None), (content + "<|im_end|>", i), ("\n", None)]
        else:
            pieces.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", None))
    return pieces


def minimind(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    system, pieces = _first_system(messages), []
    if tools:
        listed = "".join("\n" + _json(tool) for tool in tools)
        text = system + "\n\n" if system is not None else ""
        text += (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>{listed}\n</tools>\n\nFor each function call, return a json object with "
            "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )
        pieces.append((f"<|im_start|>system\n{text}<|im_end|>\n", None))
    elif system is not None:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", None))

    def answer(i: int) -> str:
        thought, content = _split_thought(messages[i])
        calls = "\n".join(_calls(messages[i]))
        between = "\n" if content and calls else ""
        thinking = "<think>\n" + thought.strip("\n") + "\n</think>\n\n"
        return thinking + content.lstrip("\n") + between + calls

    return pieces + _chatml_turns(messages, answer)


def qwen25(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    if any(message.get("reasoning_content") for message in messages):
        raise Refused("no reasoning")
    system = _first_system(messages)
    text = "You answer briefly." if system is None else system
    text += "\n\n" + _family_tools(tools) if tools else ""

    def answer(i: int) -> str:
        parts = [messages[i]["content"], *_calls(messages[i])]
        return "\n".join(parts if parts[0] else parts[1:])

    return [(f"<|im_start|>system\n{text}<|im_end|>\n", None), *_chatml_turns(messages, answer)]


def qwen3(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    system = _first_system(messages)
    parts = [part for part in (system, _family_tools(tools) if tools else None) if part is not None]
    first: list[Piece] = []
    if parts:
        first = [("<|im_start|>system\n" + "\n\n".join(parts) + "<|im_end|>\n", None)]
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    last_question = questions[-1] if questions else len(messages) - 1

    def answer(i: int) -> str:
        thought, content = _split_thought(messages[i])
        calls = "\n".join(_calls(messages[i]))
        between = "\n" if content and calls else ""
        if i > last_question and (thought or i + 1 == len(messages)):
            thinking = "<think>\n" + thought.strip("\n") + "\n</think>\n\n"
            return thinking + content.lstrip("\n") + between + calls
        return content + between + calls

    return first + _chatml_turns(messages, answer)


def llama3(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    if tools or any(message.get("tool_calls") for message in messages):
        raise Refused("no tools")
    pieces: list[Piece] = [("<|begin_of_text|>", None)]
    for i, message in enumerate(messages):
        header = f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
        said = message["content"].strip() + "<|eot_id|>"
        pieces += [(header, None), (said, i if message["role"] == "assistant" else None)]
    return pieces


def _alternating(messages: Messages, tools: list[Any] | None) -> tuple[str, int]:
    """The system text, and the index of the first turn."""
    if tools or any(message.get("tool_calls") for message in messages):
        raise Refused("no tools")
    system = _first_system(messages) or ""
    start = 1 if system else 0
    for i, message in enumerate(messages[start:]):
        if (message["role"] == "user") != (i % 2 == 0):
            raise Refused("roles must alternate")
    return system, start


def mistral(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    system, start = _alternating(messages, tools)
    pieces: list[Piece] = [("<s>", None)]
    for i, message in enumerate(messages[start:], start=start):
        content = message["content"]
        if message["role"] == "user":
            before = system + "\n\n" if system and i == start else ""
            pieces.append((f"[INST] {before}{content} [/INST]", None))
        elif message["role"] == "assistant":
            pieces.append((f" {content.strip()}</s>", i))
        else:
            raise Refused("unknown role")
    return pieces


def gemma(messages: Messages, tools: list[Any] | None) -> list[Piece]:
    system, start = _alternating(messages, tools)
    pieces: list[Piece] = [("<bos>", None)]
    for i, message in enumerate(messages[start:], start=start):
        content = message["content"].strip()
        if message["role"] == "assistant":
            pieces += [("<start_of_turn>model\n", None), (content + "<end_of_turn>", i)]
            pieces.append(("\n", None))
        else:
            before = system + "\n\n" if system and i == start else ""
            role = message["role"]
            text = f"<start_of_turn>{role}\n{before}{content}<end_of_turn>\n"
            pieces.append((text, None))
    return pieces


RENDERS: dict[str, Render] = {
    "smollm2": smollm2,
    "minimind": minimind,
    "qwen2.5": qwen25,
    "qwen3": qwen3,
    "llama3": llama3,
    "mistral": mistral,
    "gemma": gemma,
}
