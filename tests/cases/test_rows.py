"""Rows and files from public reports: what is kept, what is dropped and why, what is printed."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftctl.data.store import TokenStore
from tests.toys.commands import Result

ROWS = Path(__file__).parent / "rows"
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Q, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CONVERSATION = {"messages": [Q, A]}
SAID = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@dataclass(frozen=True)
class Case:
    """An input, and its result. `given`: a path below rows/, rows, or the bytes of a file."""

    given: str | list[Any] | bytes
    kept: list[str] = field(default_factory=list)  # trained texts, without the end of the turn
    dropped: dict[str, int] = field(default_factory=dict)
    says: str = ""  # on the screen, or in the error and its hint
    flags: tuple[str, ...] = ()
    name: str = "rows.jsonl"
    exit_code: int = 0


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [called], **more}


def tool(**properties: Any) -> dict[str, Any]:
    return {"name": "f", "parameters": {"type": "object", "properties": properties}}


def tar_of_1979(content: bytes) -> bytes:
    """A tar archive whose header has no magic."""
    head = bytearray(b"rows.jsonl".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2)
    head += b"%011o\0" % len(content) + b"%011o\0" % 0 + b" " * 8 + b"0"
    head = head.ljust(512, b"\0")
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content.ljust(512, b"\0")


PADDING = [
    Case(
        "A01/rows.jsonl",
        ['{"name": "get_weather", "arguments": {"town": "Jena"}}', "It is 12 degrees."],
        says="nulls were removed",
    ),
    Case(
        [{"messages": [Q, call({"a": 1, "b": None})], "tools": [tool(a={}, b=None)]}],
        ['{"name": "f", "arguments": {"a": 1}}'],
        says="nulls were removed",
    ),
    Case(
        [{"messages": [Q, call({"a": 1, "b": None}, tool_call_id=None)]}],
        ['{"name": "f", "arguments": {"a": 1}}'],
        says="nulls were removed",
    ),
    Case(
        [{"messages": [Q, call({"a": 1, "b": None})], "tools": [tool(a={})]}],
        ['{"name": "f", "arguments": {"a": 1}}'],
        says="nulls were removed",
    ),
    Case(
        [{"messages": [Q, call({"a": None})], "tools": [tool(a={})]}],
        ['{"name": "f", "arguments": {"a": null}}'],
    ),
]
CALLS = [
    Case(
        "A04/rows.jsonl",
        [
            '{"name": "ping", "arguments": {}}',
            "Done.",
            '{"name": "ping", "arguments": {"t": "2025-08-01"}}',
            "y",
            '{"name": "ping", "arguments": {"t": 1690876800}}',
            "y",
            '{"name": "ping", "arguments": {"t": 1}}',
            "y",
        ],
        {"bad_shape": 1},
    ),
    Case([CONVERSATION, {"messages": [Q, call("{'a': 1}")]}], ["Hello"], {"bad_shape": 1}),
    Case([CONVERSATION, {"messages": [Q, call("a=1")]}], ["Hello"], {"bad_shape": 1}),
    Case(
        [
            CONVERSATION,
            {
                "conversations": [
                    SAID[0],
                    {"from": "tool_call", "value": '{"name": "f", "arguments": {'},
                ]
            },
        ],
        ["Hello"],
        {"bad_shape": 1},
    ),
    Case(
        [
            CONVERSATION,
            {
                "messages": [
                    Q,
                    {
                        "role": "assistant",
                        "content": "",
                        "function_call": {"name": "f", "arguments": '{"a"'},
                    },
                ]
            },
        ],
        ["Hello"],
        {"bad_shape": 1},
    ),
]
JSON_TEXT = [
    Case("A05/rows.jsonl", ["The Elbe.", "Hello."]),
    Case([{"messages": json.dumps([Q, A], indent=1)}], ["Hello"]),
    Case([{"prompt": json.dumps([Q]), "completion": json.dumps([A])}], ["Hello"]),
    Case([{"conversations": json.dumps(SAID), "tools": "[]", "messages": None}], ["Hello"]),
    Case([CONVERSATION, {"messages": str([Q, A])}], ["Hello"], {"bad_shape": 1}),
]
REASONING = [
    Case([{"messages": [Q, A | {"thinking": "", "reasoning": "b"}]}], ["<think>b</think>Hello"]),
    Case(
        [CONVERSATION, *({"messages": [Q, A | {"reasoning": r}]} for r in (["a"], {"text": "a"}))],
        ["Hello"],
        {"bad_shape": 2},
    ),
    Case(
        [CONVERSATION, {"messages": [Q, A | {"reasoning": "a", "thinking": "b"}]}],
        ["Hello"],
        {"bad_shape": 1},
    ),
    Case(
        [{"messages": [Q, A | {"refusal": "No.", "id": "1", "annotations": []}], "source": "x"}],
        ["Hello"],
        says="messages[].id, messages[].refusal, source",
    ),
    Case(  # the column is read in one row and lost in another
        [
            {"question": "Who?", "context": "It is I.", "answer": "I"},
            CONVERSATION | {"context": "x"},
        ],
        ["I", "Hello"],
        says="columns not read  context",
    ),
    Case(
        [{"messages": [{"role": "system", "content": "s", "functions": [tool(a={})]}, Q, A]}],
        ["Hello"],
        flags=("--show", "1"),
        says='"function": {"name": "f"',
    ),
]
SYSTEM = [
    Case("A08/rows.jsonl", ["The Elbe.", "THE ODER.", "THE HAVEL.", "THE SPREE.", "THE SAALE."]),
    Case([{"system": "Be kind.", "query": "Hi", "response": "Hello"}], ["Hello"]),
    Case([{"system": "Be kind.", "prompt": [Q], "completion": [A]}], ["Hello"]),
    Case(
        [CONVERSATION, {"system": "a", "messages": [{"role": "system", "content": "b"}, Q, A]}],
        ["Hello"],
        {"bad_shape": 1},
    ),
]
PREFERENCES = [
    Case("A15/dpo.jsonl", [], says="preference data", exit_code=3),
    Case("A15/dpo_alpaca.jsonl", [], says="preference data", exit_code=3),
    Case("A15/dpo_msgs.jsonl", [], says="preference data", exit_code=3),
    Case("A15/dpo_sharegpt.jsonl", [], says="preference data", exit_code=3),
    Case("A15/kto_lf.jsonl", [], says="label is false", exit_code=3),
    Case("A15/kto.jsonl", ["The Elbe."], {"preference": 1}),
    Case("A15/dpo.jsonl", ["The Elbe."] * 2, flags=("--columns", "completion=chosen")),
    Case(
        [{"prompt": "a", "accepted": "b", "rejected": "c"}],
        [],
        says="--columns completion=accepted",
        exit_code=3,
    ),
    Case(
        [{"prompt": "a", "response": "Hello", "response_rejected": "c"}],
        [],
        says="--columns completion=response trains",
        exit_code=3,
    ),
    Case(
        [{"prompt": "a", "response": "Hello", "response_rejected": "c"}],
        ["Hello"],
        flags=("--columns", "completion=response"),
    ),
    Case(
        [{"question": "a", "response_j": "b", "response_k": "c"}],
        [],
        says="preference data, with response_j and response_k",
        exit_code=3,
    ),
    Case(b"prompt,chosen,rejected\na,b,c\n", [], says="preference data", name="a.csv", exit_code=3),
    Case([{**CONVERSATION, "chosen_topic": "x", "preferred_language": "en"}], ["Hello"]),
    Case([CONVERSATION, {**CONVERSATION, "desirable": False}], ["Hello"], {"preference": 1}),
    Case([CONVERSATION, {**CONVERSATION, "label": "undesirable"}], ["Hello"], {"preference": 1}),
    Case([CONVERSATION, {**CONVERSATION, "kto_tag": False}], ["Hello"], {"preference": 1}),
    Case([CONVERSATION, {**CONVERSATION, "rejected_response": "x"}], ["Hello"], {"preference": 1}),
    Case(
        [CONVERSATION, {"input": {}, "preferred_output": [A], "non_preferred_output": [A]}],
        ["Hello"],
        {"preference": 1},
    ),
]
END = "<|endoftext|>"
TEXTS = [
    Case("A16/text.jsonl", [], says="--format text", exit_code=3),
    Case("A16/text.json", [], says="--format text", exit_code=3),
    Case("A16/plain.txt", [], says="--format text", exit_code=3),
    Case("A16/text.json", [f"ocument one{END}", f"ocument two{END}"], flags=("--format", "text")),
    Case(
        "A16/plain.txt",
        [f" Elbe is a river.\nIt flows to the sea.\n{END}"],
        flags=("--format", "text"),
    ),
    Case(b"text,id\nthe sea,1\n", [f"he sea{END}"], flags=("--format", "text"), name="a.csv"),
    Case(
        [{"body": "the sea"}],
        [f"he sea{END}"],
        flags=("--format", "text", "--columns", "text=body"),
    ),
    Case(b"# Notes\n", [], says="is text, not JSON", name="notes.md", exit_code=3),
]
TABLES = [
    Case("A17/qa.csv", ["The Elbe.", "The Baltic."]),
    Case("A17/qa.tsv", ["The Elbe."]),
    Case("A17/dir", ["b"], says="qa.csv: 1 row"),
    Case("A17/q.xlsx", [], says="is an Excel workbook", exit_code=3),
    Case(b"prompt;completion\r\nHi;Hello\r\n", ["Hello"], name="a.csv"),
    Case('\ufeffquestion,answer\n"a\nb",Hello\n'.encode(), ["Hello"], name="a.csv"),
    Case(b"q,a\nHi,Hello\n", ["Hello"], flags=("--columns", "prompt=q,completion=a"), name="a.csv"),
    Case(b"q,a\nHi,Hello\n", [], says="its columns: q, a", name="a.csv", exit_code=3),
    Case(
        b"prompt,completion,completion\na,b,c\n",
        [],
        says="two columns are called 'completion'",
        name="a.csv",
        exit_code=3,
    ),
    Case(b"\n", [], says="the first line must name the columns", name="a.csv", exit_code=3),
    Case(
        b"prompt,completion\nHi,Hello\n,\n \n\n,Hello\nHi,\n \t,\n",
        ["Hello"],
        {"empty": 4},
        name="a.csv",
    ),
    Case(
        b"instruction,input,output\nHi,,Hello\n,Hi,Hello\n,,Hello\nHi,Hi,\n",
        ["Hello", "Hello"],
        {"empty": 2},
        name="a.csv",
    ),
    Case(
        b"prompt,completion,q\n,,Hi\n,Hello,Hi\n",
        ["Hello"],
        {"empty": 1},
        flags=("--columns", "prompt=q"),
        name="a.csv",
    ),
    Case(
        b"text,id\nthe sea,1\n,2\n",
        [f"he sea{END}"],
        {"empty": 1},
        flags=("--format", "text"),
        name="a.csv",
    ),
    Case(
        b'prompt\tcompletion\nHi\tHello\n"Hi\tHello\nHi"\tHello\n',
        ["Hello"],
        {"bad_shape": 1},
        name="a.tsv",
    ),
    Case(
        b"conversation\n" + b'"' + json.dumps([Q, A]).replace('"', '""').encode() + b'"\n',
        ["Hello"],
        name="a.csv",
    ),
]
EMPTY = [  # answers and questions without text
    Case(
        [{"prompt": "Hi", "completion": ""}, {"messages": [Q, A | {"content": " \n"}]}],
        ["", " \n"],
        says="2 rows have an answer without text, so the model learns to answer nothing (first",
    ),
    Case(
        [{"prompt": "", "completion": "Hello"}, CONVERSATION],
        ["Hello", "Hello"],
        says="1 row has a question without text (first",
    ),
    Case(
        [
            CONVERSATION,
            {"prompt": "", "completion": " "},
            {"instruction": "", "output": ""},
            {"messages": [Q | {"content": ""}, A | {"content": None, "reasoning": ""}]},
        ],
        ["Hello"],
        {"empty": 3},
    ),
    Case([CONVERSATION, {"prompt": "Hi", "completion": None}], ["Hello"], {"bad_shape": 1}),
    Case([{"prompt": None, "completion": "Hi"}], [], says="'prompt' is null", exit_code=3),
]
REMARKS = [  # on rows that are kept
    Case(
        [{"prompt": "Hi", "completion": "<think>Two."}],
        ["<think>Two."],
        says="1 row has an answer that ends inside a thinking block: was the text cut off?",
    ),
    Case(
        [
            {"prompt": f"{before}<image>{after}", "completion": "Hello"}
            for before, after in (("", "\nWhat?"), ("What?\n", ""), ("", "What?"), ("The ", " tag"))
        ],
        ["Hello"] * 4,
        says="3 rows have a placeholder for an image or sound (<image>)",
    ),
    Case(
        [{"messages": [Q, call({"a": 1})], "tools": [tool(a={}) | {"name": "g"}]}],
        ['{"name": "f", "arguments": {"a": 1}}'],
        says="1 row calls a tool that is not among the row's tools (first",
    ),
]
ELSEWHERE = [  # a part of a row in two places, or in another than the rest
    Case(
        [CONVERSATION, {"messages": [Q], "response": "Hello"}],
        ["Hello"],
        {"no_target": 1},
    ),
    Case(
        [{"messages": [Q], "response": "Hello"}],
        [],
        says="--columns prompt=messages,completion=response trains on it",
        exit_code=3,
    ),
    Case(
        [{"messages": [Q], "response": "Hello"}],
        ["Hello"],
        flags=("--columns", "prompt=messages,completion=response"),
    ),
    Case(
        [
            CONVERSATION,
            {**CONVERSATION, "tools": [tool(a={})], "functions": [tool(b={})]},
            {"tools": [tool(a={})], "messages": [Q | {"tools": [tool(b={})]}, A]},
            {"prompt": [{**Q, "tools": [tool(a={})]}], "completion": [A], "tools": [tool(b={})]},
        ],
        ["Hello"],
        {"bad_shape": 3},
    ),
    Case(
        [{"prompt": [{**Q, "tools": [tool(a={})]}], "completion": [A]}],
        ["Hello"],
        flags=("--show", "1"),
        says='"function": {"name": "f"',
    ),
    Case(
        [CONVERSATION, {**CONVERSATION, "system": "a", "system_prompt": "b"}],
        ["Hello"],
        {"bad_shape": 1},
    ),
    Case(
        [CONVERSATION, {"messages": [Q | {"reasoning_content": "hm"}, A]}],
        ["Hello"],
        {"bad_shape": 1},
    ),
    Case(
        [
            CONVERSATION,
            *(
                {
                    "messages": [
                        Q,
                        call({"a": 1}, function_call={"name": name, "arguments": '{"a": 1}'}),
                    ]
                }
                for name in ("f", "g")
            ),
        ],
        ["Hello", '{"name": "f", "arguments": {"a": 1}}'],
        {"bad_shape": 1},
    ),
]
MARK_COLUMNS = [  # marks of messages in a column of the row
    Case([{"messages": [Q, A, Q, A | {"content": "Yes"}], "loss_mask": [0, 0, 0, 1]}], ["Yes"]),
    Case(
        [CONVERSATION, {**CONVERSATION, "loss_mask": [1]}, {**CONVERSATION, "train_mask": "01"}],
        ["Hello"],
        {"bad_shape": 2},
    ),
    Case([{"input_ids": [1, 2], "labels": [-100, 2]}], [], says="token ids", exit_code=3),
]
BYTES = [
    Case("A20/bom.jsonl", ["The Elbe.", "Käse für Müller"]),
    Case("A20/two_boms.jsonl", ["The Elbe.", "Käse für Müller"]),
    Case("A20/bom_array.json", ["The Elbe."]),
    Case("A20/utf16.jsonl", [], says="is UTF-16", exit_code=3),
    Case("A20/utf16le.jsonl", [], says="is UTF-16", exit_code=3),
    Case("A20/cp1252.jsonl", ["The Elbe.", "The Elbe."], {"invalid_utf8": 1}),
    Case("A20/gbk.jsonl", [], says="convert the file to UTF-8", exit_code=3),
    Case(b"\xfd7zXZ\x00", [], says="compressed by xz", exit_code=3),
    Case(b"BZh91", [], says="compressed by bzip2", exit_code=3),
    Case(b"PK\x03\x04", [], says="a zip archive", exit_code=3),
    Case(gzip.compress(gzip.compress(b"{}")), [], says="compressed by gzip twice", exit_code=3),
    Case(b"]\x00\x00\x80\x00", [], says="compressed by lzma", exit_code=3),
    Case(tar_of_1979(b"{}\n"), [], says="a tar archive", exit_code=3),
    Case(bytes(600), [], says="only zero bytes", exit_code=3),
    Case(bytes(range(1, 128)) * 9, [], says="is binary data", exit_code=3),
    Case("prompt,completion\na,b\n".encode("utf-16-le"), [], says="is UTF-16", exit_code=3),
    Case(b'\x08\0\0\0\0\0\0\0{"a": 1}', [], says="weights, not rows", exit_code=3),
    Case(b"\n<html>", [], says="is a web page", exit_code=3),
    Case(str(CONVERSATION).encode(), [], says="write the file with json.dumps", exit_code=3),
    Case(b'{"prompt": "Hi", "completion": "Hello"}\r' * 2, [], says="tr '\\r'", exit_code=3),
    Case([[Q, A], [Q, A]], [], says="jq -c '{messages: .}'", exit_code=3),
    Case(json.dumps([[Q, A]]).encode(), [], says="jq -c '.[] | {messages: .}'", exit_code=3),
    Case([{"1": CONVERSATION, "2": CONVERSATION}], [], says="jq -c '.[]'", exit_code=3),
    Case([{"rows": [{"row": CONVERSATION}]}], [], says="jq -c '.rows[].row'", exit_code=3),
    Case(json.dumps(CONVERSATION, indent=1).encode(), [], says="`jq -c . ", exit_code=3),
    Case([{"messages": [[Q, A], [Q, A]]}], [], says="ordered by columns", exit_code=3),
    Case(
        json.dumps({"data": [CONVERSATION]}, indent=1).encode(),
        [],
        says="over several lines, with keys: data",
        exit_code=3,
    ),
]
NUMBERS = [
    Case("A21/rows.jsonl", ["The Elbe."] * 4),
    Case(b'[{"prompt": "Hi", "completion": "Hello", "x": [NaN]}]', ["Hello"]),
    Case(b'{"x": {"y": -Infinity}, "prompt": "Hi", "completion": "Hello"}\n', ["Hello"]),
    Case(
        b'{"prompt": "Hi", "completion": NaN}\n',
        [],
        says="NaN or an infinite number, which",
        exit_code=3,
    ),
]
MEDIA = [
    Case(
        "A23/rows.jsonl",
        ["<think>hmm</think>Thought.", "<think>hmm, secret</think>Thought."],
        {"not_text": 5, "bad_shape": 2},
    ),
    Case([CONVERSATION, {**CONVERSATION, "videos": ["a.mp4"]}], ["Hello"], {"not_text": 1}),
    Case([CONVERSATION, {"messages": [{**Q, "images": ["a"]}, A]}], ["Hello"], {"not_text": 1}),
    Case(
        [CONVERSATION, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, A]}],
        ["Hello"],
        {"not_text": 1},
    ),
    Case([{**CONVERSATION, "images": [], "audio": None}], ["Hello"]),
    Case([{**CONVERSATION, "images": [None], "image": {"bytes": None, "path": None}}], ["Hello"]),
    Case([CONVERSATION, {**CONVERSATION, "image_path": "a.png"}], ["Hello"], {"not_text": 1}),
    Case(
        [
            CONVERSATION,
            {"messages": [{"role": "user", "content": [{"text": "a", "image": "b"}]}, A]},
        ],
        ["Hello"],
        {"not_text": 1},
    ),
]
SHAPES = [
    Case("A24/dolly.jsonl", ["In 1901."]),
    Case("A24/gemini.jsonl", ["The Elbe."]),
    Case("A24/pr.jsonl", ["The Elbe."]),
    Case("A24/qa.jsonl", ["The Elbe."]),
    Case("A24/swift.jsonl", ["Hello.", "The Elbe."]),
    Case("A24/xtuner.jsonl", ["The Elbe."]),
    Case("A24/caps.jsonl", [], says="--columns instruction=Instruction,output=Output", exit_code=3),
    Case("A24/io.jsonl", [], says="--columns prompt=input,completion=output", exit_code=3),
    Case("A24/dialog.jsonl", [], says="--columns messages=dialogue", exit_code=3),
    Case("A24/openai_batch.jsonl", ["The Elbe."], flags=("--columns", "messages=body.messages")),
    Case("A24/wrapped.jsonl", ["The Elbe."], flags=("--columns", "messages=data.messages")),
    Case(
        [{"messages": [{"from": "Human_1", "content": "Hi"}, {"role": "BOT", "value": "Hello"}]}],
        ["Hello"],
    ),
    Case([{"messages": [Q, {"role": "assistant", "text": "Hello"}]}], ["Hello"]),
    Case(
        [{"text": "Hi", "completion": "Hello"}],
        [],
        says="--columns prompt=text,completion=",
        exit_code=3,
    ),
    Case([{"messages": [Q, {"role": "ipython", "content": {"t": 1}}, A]}], ["Hello"]),
    Case([{"instruction": "", "output": None, "messages": [Q, A]}], ["Hello"]),
    Case([CONVERSATION, {"instruction": "a", "output": ["d", "e"]}], ["Hello"], {"bad_shape": 1}),
    Case(
        [{"instruction": ["a", "b"], "output": ["c", "d"]}],
        [],
        says="is a list of strings, not one text",
        exit_code=3,
    ),
]
SPECIAL = [
    Case("A30/rows.jsonl", ["Hello.<|im_end|>", "Hello.<|im_end|>", "No.", "Hello.",
         "Hello.<|endoftext|>"], says="4 rows hold a special token's text"),
    Case("A30/rows.jsonl", ["Hello."], {"special_text": 4}, flags=("--special-text", "refuse")),
    Case("A30/rows.jsonl", ["Hello.<\u200b|im_end|>", "Hello.<\u200b|im_end|>", "No.", "Hello.",
         "Hello.<\u200b|endoftext|>"], says="which was escaped",
         flags=("--special-text", "escape")),
    Case(b'{"prompt": "\\u003c|im_start|>x", "completion": "Hello"}\n', ["Hello"],
         says="1 row holds a special token's text"),
    Case([{"prompt": "a <|im b", "completion": "Hello"}], ["Hello"]),
]  # fmt: skip
FILES = [
    Case("A13/saved", ["a0", "a1", "a2", "a3"]),
    Case("A13/saved_dict", ["a0", "a1", "a2", "a3"], says="test/data-00000-of-00001.arrow (valid"),
    Case("A13/saved/data-00000-of-00001.arrow", ["a0", "a1", "a2", "a3"]),
    Case("A32/mlx", [f"a{n}" for n in range(6)], says="valid.jsonl (validation or test data"),
    Case("A32/hf", [f"a{n}" for n in range(6)], says="train-00000-of-00001.json: 6 rows"),
    Case("A32/mlx/test.jsonl", [f"ta{n}" for n in range(6)]),
]  # fmt: skip
CALLED = '{"name": "f", "arguments": {"a": 1}}'
LONG = 123456789012345678901234567890


def calling(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [*calls]}], **more}


CALL_FORMS = [  # where other tools write the arguments, and the tools
    Case(
        [
            calling({"name": "f", "parameters": {"a": 1}}),
            calling({"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}),
            calling({"function": {"name": "f", "args": '{"a": 1}'}}),
            {
                "conversations": [
                    SAID[0],
                    {"from": "function_call", "value": '{"name": "f", "parameters": {"a": 1}}'},
                ]
            },
        ],
        [CALLED] * 4,
    ),
    Case(
        [calling({"name": "f", "parameters": {"a": 1, "b": None}}, tools=[tool(a={}, b=None)])],
        [CALLED],
        says="nulls were removed",
    ),
    Case([CONVERSATION, calling({"name": "f", "town": "Jena"})], ["Hello"], {"bad_shape": 1}),
    Case(  # ms-swift writes each of several calls as a message
        [{"messages": [Q, *([{"role": "tool_call", "content": CALLED}] * 2)]}], [CALLED + CALLED]
    ),
    Case([calling({"name": "f", "arguments": json.dumps('{"a": 1}')})], [CALLED]),
    Case([calling({"name": "f", "arguments": json.dumps("{'a': 1}")})], [],
         says="are not JSON", exit_code=3),
    Case(
        [{"messages": [Q, {"role": "assistant", "content": [], "tool_calls": [
            {"name": "f", "arguments": {"a": 1}}]}]}],
        [CALLED],
    ),
    Case(
        [calling({"name": "f", "arguments": {"a": 1}}, tool_defs=[tool(a={})])],
        [],
        says="--columns tools=tool_defs reads it",
        exit_code=3,
    ),
    Case(
        [calling({"name": "f", "arguments": {"a": 1}}, tool_defs=json.dumps([tool(a={})]))],
        [CALLED],
        flags=("--columns", "tools=tool_defs"),
    ),
]  # fmt: skip
LONG_INTEGERS = [  # which a reader of JSON rounds
    Case(
        [
            {"messages": [{"role": "user", "content": f"function {LONG}"}, A], "id": LONG},
            calling({"name": "f", "arguments": {"a": LONG}}),
            calling({"name": "f", "arguments": json.dumps({"a": LONG})}),
            calling({"name": "f", "arguments": {}}, tools=[tool(a={"maximum": LONG})]),
            {"messages": [Q, {"role": "function", "name": "f", "content": {"id": LONG}}, A]},
            {"conversations": [{"from": "function_call", "value": json.dumps(
                {"name": "f", "arguments": {"a": LONG}})}]},
        ],
        ["Hello"],
        {"bad_shape": 5},
    ),
    Case(
        [calling({"name": "f", "arguments": {"a": 2**64 - 1, "b": 6.02e23}})],
        ['{"name": "f", "arguments": {"a": 18446744073709551615, "b": 6.02e+23}}'],
    ),
]  # fmt: skip
TWO_NAMES = [  # of one field
    Case(
        [
            {"messages": [Q, {"role": "assistant", "content": "", "value": "Hello"}]},
            {"messages": [Q, A | {"from": "gpt", "parts": [{"type": "text", "text": "Hello"}]}]},
            {"messages": [Q, A | {"value": "Hi"}]},
            {"messages": [Q, A | {"from": "human"}]},
        ],
        ["Hello", "Hello"],
        {"bad_shape": 1, "bad_role": 1},
    ),
    Case(
        [{"messages": [Q, A], "conversations": [Q, A | {"content": "No"}]}],
        ["Hello"],
        says="conversations",
    ),
]
ROW = b'{"prompt": "Hi", "completion": "Hello"}'
JOINED = [  # files that were put together, or written by hand
    Case(b"[" + ROW + b"]\n[" + ROW + b"]\n", ["Hello"], {"broken_json": 1}),
    Case(gzip.compress(ROW + b"\n") + gzip.compress(ROW + b"\n"), ["Hello"] * 2),
    Case(ROW + b"\n" + ROW + ROW + b"\n", ["Hello"], {"broken_json": 1}),
    Case(ROW + b",\n" + ROW + b",\n" + ROW + b"\n", ["Hello"], {"broken_json": 2}),
    Case(ROW + b",\n" + ROW + b",\n", [], says="the row ends with a comma", exit_code=3),
    Case('{"prompt": "Hi\u2028\u0085", "completion": "Hello"}\n'.encode(), ["Hello"]),
    Case([Q, A], [], says="jq -cs '{messages: .}'", exit_code=3),
    Case(json.dumps([Q, A]).encode(), [], says="jq -c '{messages: .}'", exit_code=3),
    Case([{"train": [CONVERSATION], "test": [CONVERSATION]}], [], says="'.train[]'", exit_code=3),
    Case([{"id": "1", "data": ["Hi", "Hello"]}], [], says="with keys: data, id", exit_code=3),
    Case([{"question": "2+2?", "answer": 4}], [], says="'answer' is not text", exit_code=3),
    Case([CONVERSATION, {"messages": [Q, A | {"train": "false"}]}], ["Hello"], {"bad_shape": 1}),
    Case(b'prompt,completion\nHi,Hello\n"a,b\nc,d\n', ["Hello"], {"cut_off": 1}, name="a.csv"),
    Case(b",prompt,completion\n0,Hi,Hello\n", ["Hello"], name="a.csv"),
    Case(b"sep=;\nprompt;completion\nHi;Hello\n", [], says="sep=", name="a.csv", exit_code=3),
]
ALL = {
    name: case
    for kind, cases in {
        "padding": PADDING, "calls": CALLS, "json-text": JSON_TEXT, "reasoning": REASONING,
        "system": SYSTEM,
        "preferences": PREFERENCES, "texts": TEXTS, "tables": TABLES, "bytes": BYTES,
        "call-forms": CALL_FORMS, "long-integers": LONG_INTEGERS, "two-names": TWO_NAMES,
        "joined": JOINED,
        "numbers": NUMBERS, "empty": EMPTY, "remarks": REMARKS,
        "elsewhere": ELSEWHERE, "mark-columns": MARK_COLUMNS,
        "media": MEDIA, "shapes": SHAPES, "special": SPECIAL, "files": FILES,
    }.items()
    for name, case in ((f"{kind}-{number}", case) for number, case in enumerate(cases))
}  # fmt: skip


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.mark.parametrize(
    ("names", "kept", "says"),
    [
        (["a.jsonl", "testset.jsonl", "holdout-1.jsonl"], 1, "testset.jsonl (validation or test"),
        (["a.jsonl", "more.zip", "old.xlsx"], 1, "more.zip (an archive or workbook: unpack it"),
        (["more.tar.gz"], 0, "more.tar.gz (an archive or workbook: unpack it"),
        (["a.txt"], 0, "and .txt with --format text"),
    ],
)
def test_files_of_a_folder_that_are_not_read_are_named(
    names: list[str], kept: int, says: str, tmp_path: Path, sftctl: Callable[..., Result]
) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(json.dumps(CONVERSATION).encode() + b"\n")
    result = sftctl("prepare-data", tmp_path / "in", "--output", tmp_path / "store")
    said = " ".join(f"{result.stdout}{result.stderr}".split())
    assert result.exit_code == (0 if kept else 3)
    assert says in said
    if kept:
        assert len(TokenStore.open(tmp_path / "store")) == kept


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"completion": [b"\xff"]}, "holds bytes that are not text"),
        ({"completion": [Decimal(10) ** 30]}, "a value that JSON does not have"),
        ({"chosen": ["a"], "rejected": ["b"]}, "preference data, with chosen and rejected"),
        ({"response_a": ["a"], "response_b": ["b"]}, "preference data, with response_a"),
        ({"reply": ["a"]}, "its columns: prompt, reply"),
        (None, "damaged Parquet or Arrow"),
    ],
)
def test_a_parquet_file_that_is_refused_says_why(
    column: dict[str, list[Any]] | None, says: str, tmp_path: Path, sftctl: Callable[..., Result]
) -> None:
    file = tmp_path / "rows.parquet"
    texts = {"prompt": ["a"] * 999, "completion": ["b"] * 999}
    pq.write_table(pa.table({"prompt": ["a"], **column} if column else texts), file)
    if column is None:
        content = file.read_bytes()
        file.write_bytes(content[:50] + bytes(100) + content[150:])
    result = sftctl("prepare-data", file, "--output", tmp_path / "store")
    assert result.exit_code == 3
    assert result.error.startswith(f"error: {file}: ") or result.error.startswith("error: no row")
    assert says in result.stderr


def test_maps_of_arrow_are_messages(tmp_path: Path, sftctl: Callable[..., Result]) -> None:
    kind = pa.map_(pa.string(), pa.string())
    turns = [[*turn.items()] for turn in SAID]
    table = pa.table({"conversations": pa.array([turns], pa.list_(kind))})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as file:
        file.write(table)
    for name in ("rows.parquet", "rows.arrow"):
        result = sftctl("prepare-data", tmp_path / name, "--output", tmp_path / "store")
        assert result.exit_code == 0, result.stderr
        assert trained(TokenStore.open(tmp_path / "store")) == ["Hello"]


def written(case: Case, folder: Path) -> Path:
    if isinstance(case.given, str):
        return ROWS / case.given
    lines = case.given
    if not isinstance(lines, bytes):
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in lines)
    (folder / case.name).write_bytes(lines)
    return folder / case.name


def trained(store: TokenStore) -> list[str]:
    """The stretches of trained text, without the end of the turn."""
    tokenizer, texts = store.load_tokenizer(), []
    for example in (store[index] for index in range(len(store))):
        start = 0
        while start < example.num_tokens:
            end = start
            while end < example.num_tokens and example.loss_mask[end] == example.loss_mask[start]:
                end += 1
            if example.loss_mask[start]:
                text = tokenizer.decode(example.input_ids[start:end])
                texts.append(text.removesuffix("<|im_end|>"))
            start = end
    return texts


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_kept_as_it_is_meant_or_accounted_for(
    name: str, tmp_path: Path, template: Path, sftctl: Callable[..., Result]
) -> None:
    case, output = ALL[name], tmp_path / "store"
    flags = ["--output", output, "--chat-template", template, "--workers", "1", *case.flags]
    result = sftctl("prepare-data", written(case, tmp_path), *flags)
    assert result.exit_code == case.exit_code, result.stderr
    assert case.says in f"{result.stdout}{result.stderr}".replace("\n              ", " ")
    if case.exit_code:
        assert not output.exists()
        assert len([line for line in result.stderr.splitlines() if "error: " in line]) == 1
        return
    store = TokenStore.open(output)
    assert store.manifest.rows_dropped == case.dropped
    assert trained(store) == case.kept
