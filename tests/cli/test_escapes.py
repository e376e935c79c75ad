"""No text from a file reaches a terminal with control characters or a line break of its own."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sftctl.words import printable
from tests.toys.commands import Result
from tests.toys.foreign import gguf_key, gguf_tensor, gguf_text, write_archive, write_gguf

Sftctl = Callable[..., Result]

EVIL = "a\x1b[2J\x1b]0;x\x07\n\r\x9b31m\u2028complete    yes\u202eb\x7f"
SHOWN = "a\\x1b[2J\\x1b]0;x\\x07\\n\\r\\x9b31m\\u2028complete    yes\\u202eb\\x7f"


def test_only_what_a_terminal_may_act_on_is_escaped() -> None:
    assert printable(EVIL) == SHOWN
    for harmless in ("plain", "Grüße 你好\u3000！", "👨\u200d👩\u200d👧", "a\xa0b"):
        assert printable(harmless) == harmless
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable("\udcff\U000e0041") == "\\udcff\\U000e0041"


def is_safe(text: str) -> bool:
    return all(printable(letter, keep="\n") == letter for letter in text)


def a_name(folder: Path) -> Path:
    save_file({EVIL: torch.ones(2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def a_name_in_a_torch_file(folder: Path) -> Path:
    torch.save({"model": {EVIL: torch.ones(2)}, "wandb_id": EVIL, EVIL: 1}, folder / "x.pth")
    return folder / "x.pth"


def a_name_of_code(folder: Path) -> Path:
    name = EVIL.replace("\n", "").encode("utf-8", "surrogateescape")
    (folder / "x.pth").write_bytes(b"\x80\x02c" + name + b"\nsystem\n)R.")
    return folder / "x.pth"


def a_name_in_an_archive(folder: Path) -> Path:
    file = write_archive(folder / "x.pth", pickle.dumps({}, 2), evil=b"x" * 8)
    file.write_bytes(file.read_bytes().replace(b"x/evil", b"x/\x1b[2J"))
    return file


def a_type(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "x.safetensors")
    data = (folder / "x.safetensors").read_bytes().replace(b'"F32"', b'"\\\\"')
    (folder / "x.safetensors").write_bytes(data)
    return folder / "x.safetensors"


def gguf_texts(folder: Path) -> Path:
    keys = [gguf_key(EVIL, 8, gguf_text("x") + b"")]
    return write_gguf(folder / "x.gguf", keys, [gguf_tensor("t" + EVIL[:9], [4], 99)])


def trainer_settings(folder: Path) -> Path:
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "epoch": EVIL}))
    save_file({EVIL: torch.ones(2)}, folder / "model.safetensors")
    versions = {"transformers_version": EVIL, "dtype": EVIL}
    (folder / "config.json").write_text(json.dumps(versions))
    return folder


MAKERS = [
    a_name,
    a_name_in_a_torch_file,
    a_name_of_code,
    a_name_in_an_archive,
    a_type,
    gguf_texts,
    trainer_settings,
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("mode", ["", "--verify", "--tensors", "twice"])
def test_an_inspection_prints_no_control_character(
    sftctl: Sftctl, tmp_path: Path, make: Callable[[Path], Path], mode: str
) -> None:
    path = make(tmp_path)
    arguments = [path, path] if mode == "twice" else [path, *filter(None, [mode])]
    result = sftctl("inspect-ckpt", *arguments)
    assert is_safe(result.stdout) and is_safe(result.stderr)
    for text in (result.stdout, result.stderr):
        assert not any(line.startswith("complete    yesb") for line in text.splitlines())


def test_json_has_the_letters_as_escapes(sftctl: Sftctl, tmp_path: Path) -> None:
    result = sftctl("inspect-ckpt", a_name(tmp_path), "--tensors", "--json")
    assert is_safe(result.stdout)
    [tensor] = json.loads(result.stdout)["tensors"]
    assert tensor["name"].endswith(EVIL)


def test_an_error_and_its_hint_are_one_line_each(sftctl: Sftctl, tmp_path: Path) -> None:
    result = sftctl("inspect-ckpt", tmp_path / f"no{EVIL}")
    lines = result.stderr.splitlines()
    assert is_safe(result.stderr) and len(lines) == 2
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ")


def test_shown_examples_keep_their_line_breaks_and_nothing_else(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    text = "one\n--- example 7\ntwo \x1b[2J \u202e"
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    result = sftctl("prepare-data", "rows.jsonl", "--output", "store", "--show", 1)
    assert result.exit_code == 0 and is_safe(result.stdout)
    assert "\n\\--- example 7\n" in result.stdout and "\\x1b[2J" in result.stdout


def test_a_refused_row_is_shown_without_its_control_characters(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    row = {"messages": [{"role": EVIL, "content": EVIL}]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    for flags in ([], ["--strict"]):
        result = sftctl("prepare-data", "rows.jsonl", "--output", "store", *flags)
        assert result.exit_code == 3
        assert is_safe(result.stdout) and is_safe(result.stderr)
