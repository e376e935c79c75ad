"""Templates and rows from public reports: trained text, and reasons in the ledger."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.store import TokenStore
from tests.toys.commands import Result
from tests.toys.data import CHATML, file_of, written
from tests.toys.masks import trained_runs

B07 = Path(__file__).parent / "rows" / "B07" / "rows.jsonl"
OPENS = CHATML.replace(
    "assistant\n{% endif",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif",
)
CUTS = OPENS.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' else m.content }}",
)
Q, A = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
KEEPS = CHATML.replace(
    "{{ m.content }}",
    "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' and '<think>' not in m.content }}"
    "{{ m.content }}",
).replace(
    "assistant\n{% endif",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif",
)
GLM = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_end|>{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% else %}{{ '<|endoftext|>' if m.role == 'tool' else '<|im_start|>' }}"
    "{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}"
)  # each header is a token, and no turn has an end
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
}
REASONS = [{"messages": [Q, A | {key: "Two."}]} for key in ("reasoning", "thinking")]
END = "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "rows", "flags", "trained", "dropped"),
    [
        pytest.param(
            CUTS,
            B07,
            [],
            [f"{thought}\n</think>\n\n{n}{END}" for thought, n in
             (("Two and two.", 4), ("A.", 4), ("B.", 6))],
            {"mask_not_exact": 1},
            id="B07",
        ),
        pytest.param(
            CUTS,
            B07,
            ["--template-option", "enable_thinking=false"],
            [f"4{END}"],
            {"message_not_rendered": 2},
            id="B07 without thinking",
        ),
        pytest.param(
            KEEPS,
            [{"messages": [Q, A | {"content": "<think>\nTwo.\n</think>\n\n4"}]}],
            ["--template-option", "enable_thinking=false"],
            [f"<think>\n\n</think>\n\n4{END}"],
            {"mask_not_exact": 1},
            id="reasoning after an empty block",
        ),
        pytest.param(
            GLM,
            [
                {"messages": [Q, CALLING]},
                {"messages": [Q, CALLING, {"role": "tool", "content": "4"}, A, Q, A]},
            ],
            [],
            [
                "add{}<|endoftext|>",
                "add{}<|endoftext|>",
                "4<|im_start|>",
                "4<|im_start|>",
            ],
            {},
            id="what follows a call is a tool's result",
        ),
        pytest.param(CHATML, REASONS, [], [f"4{END}"], {"message_not_rendered": 2}, id="A09"),
        pytest.param(
            "{% if messages[0].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
            + CHATML,
            [{"messages": [A, Q, A]}],
            ["--leading-assistant", "drop"],
            [f"4{END}"],
            {},
            id="the assistant first",
        ),
    ],
)  # fmt: skip
def test_what_is_trained_and_what_is_dropped(
    template: str,
    rows: Any,
    flags: list[str],
    trained: list[str],
    dropped: dict[str, int],
    tmp_path: Path,
    sftctl: Callable[..., Result],
) -> None:
    if isinstance(rows, list):  # and one row that every template writes
        rows = written(
            tmp_path / "rows.jsonl", [*rows, *([{"messages": [Q, A]}] if dropped else [])]
        )
    file = file_of(tmp_path, "template.jinja", template)
    store = tmp_path / "store"
    result = sftctl(
        "prepare-data", rows, "--output", store, "--chat-template", file, "--json", *flags
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows_dropped"] == dropped
    opened = TokenStore.open(store)
    tokenizer = opened.load_tokenizer()
    runs = [run for i in range(len(opened)) for run in trained_runs(opened[i], tokenizer)]
    assert runs == trained
