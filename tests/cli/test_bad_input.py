"""Every mistake gives one `error:` line and its exit code, and leaves no files behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys.commands import Result, without_phases

Sftctl = Callable[..., Result]
GOOD = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data.jsonl: no such file"),
        ("", "data.jsonl: no rows in this file"),
        (GOOD + '{"messages": [\n' + GOOD, "data.jsonl:2: "),
        (GOOD + '{"messages":[{"role":"user","content":"a"}]}\n', "data.jsonl:2: "),
        (GOOD.replace("user", "robot"), "data.jsonl:1: unknown role 'robot'"),
        (GOOD + '{"text": "a"}\n', "data.jsonl:2: "),
        (GOOD + "[1]\n", "data.jsonl:2: "),
    ],
    ids=["missing", "empty", "broken JSON", "no assistant", "unknown role", "no shape", "no row"],
)
def test_bad_data_names_file_and_line(
    sftctl: Sftctl, tmp_path: Path, content: str | None, message: str
) -> None:
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    result = sftctl("prepare-data", data, "--output", "out", "--strict")
    assert result.exit_code == 3
    assert message in result.error
    assert result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"data.jsonl"}


@pytest.mark.parametrize("command", ["prepare-data", "train"])
def test_data_without_a_row_to_train_on_is_refused(
    sftctl: Sftctl, tmp_path: Path, command: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD.replace("user", "robot") + "[1]\n")
    output = "--output" if command == "prepare-data" else "--output-dir"
    inputs = [data] if command == "prepare-data" else ["--data", data]
    result = sftctl(command, *inputs, output, "out")
    assert result.exit_code == 3
    what = "no row is left to train on out of 2 read; bad_role: 1; bad_shape: 1"
    assert result.error == f"error: {what}"
    assert f"hint: the first: {data}:1: unknown role 'robot'" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["train", "--set", "optim.learnin_rate=1"], 2, "did you mean optim.learning_rate?"),
        (["train", "--set", "optim.learning_rate"], 2, "expected section.key=value"),
        (["train", "--set", "=3"], 2, "--set =3: expected section.key=value"),
        (["train", "--set", "model.name="], 2, "model.name: is empty"),
        (["train", "--data", ""], 2, "data.path: is empty"),
        (["train", "--epochs", "two"], 2, "train.epochs: expected int, got 'two'"),
        (["train", "--epochs", "0"], 2, "train.epochs: 0 is too small; at least 1"),
        (["train", "--dtype", "int8"], 2, "train.dtype: expected"),
        (["train", "--device", "cuda"], 2, "train.device: cuda is set"),
        (["train", "--epoch", "2"], 2, "No such option: --epoch"),
        (["train", "none.toml"], 2, "none.toml: No such file"),
        (["train", "--model", "no-such-preset"], 2, "no-such-preset: neither a preset"),
        (["train", "--model", "./nowhere"], 2, "./nowhere: no such directory"),
        (["train", "--tokenizer", "small"], 2, "small: a preset has no tokenizer of its own"),
        (["train", "--model", "empty"], 2, "empty: no config.json in this directory"),
        (["train", "--model", "none.gguf"], 2, "none.gguf: no such file"),
        (["train", "--model", "owner/name"], 2, "owner/name"),
        (["train", "--tokenizer", "empty"], 2, "empty: no tokenizer.json in this directory"),
        (["train", "--output-dir", "empty"], 2, "empty: exists already"),
        (["train", "--data", "*.none"], 3, "*.none: no file matches this pattern"),
        (["train", "--data", "empty"], 3, "empty: no data files in this folder"),
        (["prepare-data", "--output", "empty"], 2, "empty: exists already"),
        (["prepare-data", "--output", "new", "--overflow", "shred"], 2, "data.overflow: expected"),
        (["resume", "empty"], 4, "empty: not a run directory"),
        (["resume", "nowhere"], 4, "nowhere: no such run directory"),
        (["inspect-ckpt", "empty"], 4, "empty: neither a run nor a checkpoint"),
        (["inspect-ckpt", "nowhere"], 4, "nowhere"),
        (
            ["export", "empty", "--output", "new"],
            4,
            "empty: not a run, a run's checkpoint, a model directory or an adapter",
        ),
        (["export", "empty", "--output", "empty"], 2, "empty: exists already"),
        (["export", "empty", "--output", "new", "--dtype", "int8"], 2, "--dtype: expected"),
        (
            ["chat", "empty", "--prompt", "hi"],
            4,
            "empty: not a run, a run's checkpoint, a model directory or an adapter",
        ),
        (["chat", "empty", "--prompt", "hi", "--top-k", "5"], 2, "nothing is sampled"),
        (
            ["chat", "empty", "--prompt", "hi", "--top-p", "0"],
            2,
            "--top-p: expected a number above 0",
        ),
        (["chat", "nowhere", "--prompt", "hi"], 4, "nowhere: no such directory"),
        (
            ["export", "empty", "--output", "new", "--format", "onnx"],
            2,
            "--format: expected hf or gguf or adapter, got 'onnx'",
        ),
        (["export", "empty", "--output", "new", "--dtype", "q8_0"], 2, "--dtype: expected"),
        (["export", "nowhere", "--output", "new"], 4, "nowhere: no such directory"),
        (["export", "adapter"], 2, "adapter: is an adapter, not a complete model"),
        (["report", "empty"], 4, "empty: not a run directory"),
        (["report", "nowhere"], 4, "nowhere: no such run directory"),
        (["trian"], 2, "Did you mean 'train'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    sftctl: Sftctl, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    result = sftctl(*arguments)
    assert (result.exit_code, message in result.error) == (exit_code, True), result.stderr
    assert [line.split(": ")[0] for line in without_phases(result.stderr)] == ["error", "hint"]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "empty"}
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_configuration_file_is_named_with_its_key(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nepocs = 3\n")
    result = sftctl("train", "run.toml")
    assert result.exit_code == 2
    assert result.error == "error: run.toml: unknown key train.epocs; did you mean train.epochs?"


def test_wrong_flags_and_settings_are_reported_together(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nbatch_size = 0\n")
    given = ["--batch-size", "abc", "--grad-clip", "x", "--keep", "0", "--set", "train.sed=1"]
    result = sftctl("train", "run.toml", *given, "--epochs", ".5")
    assert result.exit_code == 2
    assert result.error.removeprefix("error: ").split("; ") == [
        "run.toml: train.batch_size: 0 is too small",
        "at least 1",
        "unknown key train.sed",
        "did you mean train.seed?",
        "train.epochs: expected int, got '.5'",
        "train.batch_size: expected int, got 'abc'",
        "optim.grad_clip: expected float, got 'x'",
        "checkpoint.keep: 0 is too small",
        "at least 1",
    ]
    assert result.stderr.splitlines()[1:] == [
        "hint: `sftctl train --print-config` shows every key, what it means and its default"
    ]
    assert "grad_clip = 0.5" in sftctl("train", "--grad-clip", ".5", "--print-config").stdout


@pytest.mark.parametrize(
    ("command", "flag", "key"),
    [
        (["prepare-data", "--output", "new"], "--max-seq-len", "data.max_seq_len"),
        (["bench-loader"], "--batch-size", "train.batch_size"),
    ],
)
def test_other_commands_report_a_wrong_number_in_the_same_words(
    sftctl: Sftctl, command: list[str], flag: str, key: str
) -> None:
    result = sftctl(*command, flag, "long")
    assert (result.exit_code, result.error) == (2, f"error: {key}: expected int, got 'long'")


def test_a_run_directory_that_cannot_be_made_is_refused(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = sftctl("train", "--model", "tiny", "--output-dir", "file/run")
    assert result.exit_code == 2
    assert "file/run: the run directory can't be made: Not a directory" in result.error


def test_numbers_too_large_to_mean_anything_are_refused(sftctl: Sftctl) -> None:
    result = sftctl("train", "--set", "train.epochs=99999999999")
    assert result.exit_code == 2 and "is too large; at most 1000000000" in result.error


def test_a_store_that_lost_its_tokenizer_is_bad_data(sftctl: Sftctl, tmp_path: Path) -> None:
    assert sftctl("prepare-data", "--output", "store").exit_code == 0
    (tmp_path / "store/tokenizer/tokenizer.json").write_text("{")
    result = sftctl("train", "--model", "tiny", "--data", "store", "--output-dir", "run")
    assert result.exit_code == 3
    assert result.error.startswith("error: ") and "store: damaged: tokenizer" in result.error
    assert "prepare the data again" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_a_template_that_drops_tools_or_their_calls_is_refused(
    sftctl: Sftctl, tmp_path: Path, train_on: str
) -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    turns = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ]
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    (tmp_path / "calls.jsonl").write_text(json.dumps({"messages": turns}))
    (tmp_path / "tools.jsonl").write_text(
        json.dumps({"messages": [turns[0], turns[3]], "tools": [{"name": "clock"}]})
    )
    for name, message in (
        ("calls", "does not render tool calls"), ("tools", "does not render the tool 'clock'")
    ):  # fmt: skip
        words = ("prepare-data", f"{name}.jsonl", "--train-on", train_on, "--strict", "--output")
        result = sftctl(*words, "s", "--chat-template", "plain.jinja")
        assert result.exit_code == 3 and message in result.error
        rendered = sftctl(*words, f"{name}-rendered")  # the bundled template renders both
        assert rendered.exit_code == 0, rendered.stderr


def test_a_store_that_was_made_in_another_way_than_asked_is_refused(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text(GOOD)
    (tmp_path / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert sftctl("prepare-data", "data.jsonl", "--output", "store").exit_code == 0
    for setting, message in (
        ("data.train_on=last", "prepared with train_on assistant, but the run asks for last"),
        ("data.overflow=drop", "prepared with overflow truncate, but the run asks for drop"),
        ("data.val_fraction=0.5", "prepared with val_fraction 0.0, but the run asks for 0.5"),
        ("data.chat_template=template.jinja", "prepared with another chat template than "),
    ):
        result = sftctl("train", "--data", "store", "--set", setting, "--output-dir", "out")
        assert result.exit_code == 3
        assert result.error.startswith(f"error: {tmp_path}/store: {message}")
        key = setting.partition("=")[0]
        assert f"hint: prepare the data again, or remove {key}" in result.stderr


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_with_a_value_that_is_not_a_token_is_one_error_line(
    sftctl: Sftctl, tmp_path: Path, num_workers: int
) -> None:
    import numpy as np

    (tmp_path / "data.jsonl").write_text(GOOD)
    assert sftctl("prepare-data", "data.jsonl", "--output", "store").exit_code == 0
    tokens = tmp_path / "store/train/tokens-00000.npy"
    np.save(tokens, np.load(tokens) + 100_000)
    result = sftctl("train", "--data", "store", "--output-dir", "out", "--num-workers", num_workers)
    assert result.exit_code == 3
    what = "store/train: damaged: example 0 holds a token id outside the vocabulary of 2048"
    assert result.error == f"error: {tmp_path}/{what}"
    assert "hint: prepare the data again" in result.stderr


def test_a_store_is_reused_or_rebuilt_and_the_screen_says_which(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    rows = [GOOD, GOOD, '{"instruction": "a", "output": "c"}\n', "{broken}\n"]
    (tmp_path / "data.jsonl").write_text("".join(rows))
    first = sftctl("prepare-data", "data.jsonl", "--output", "store")
    assert (first.exit_code, "reused" in first.stdout, "rebuilt" in first.stdout) == (0, 0, 0)
    assert "dropped: broken_json" in first.stdout
    assert "1 of 3 rows (kept)" in first.stdout
    assert "data.jsonl: messages 2, alpaca 1" in first.stdout
    again = sftctl("prepare-data", "data.jsonl", "--output", "store")
    assert (again.exit_code, "reused: nothing changed" in again.stdout) == (0, True)
    other = sftctl("prepare-data", "data.jsonl", "--output", "store", "--max-seq-len", 100)
    assert "max_seq_len 1024 → 100" in other.stdout


def test_a_store_of_another_tokenizer_than_the_models_is_refused(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    assert sftctl("prepare-data", "--output", "store").exit_code == 0
    run = ["train", "--model", "tiny", "--max-steps", "1", "--output-dir", "run"]
    assert sftctl(*run).exit_code == 0
    model = tmp_path / "model"
    shutil.copytree(tmp_path / "run/final", model, ignore=shutil.ignore_patterns("manifest.json*"))
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (model / "tokenizer.json").write_text(json.dumps(content))
    result = sftctl("train", "--model", "model", "--data", "store", "--output-dir", "other")
    assert result.exit_code == 3
    assert "store: prepared with tokenizer" in result.error
    assert not (tmp_path / "other").exists()
