"""The mistakes of new users who tried the tool, and the message for each.

A hint that names a command is typed too: what it promises must happen.
"""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys.commands import Result

Sftctl = Callable[..., Result]
ROW = '{"instruction": "Say hi.", "output": "Hi."}\n'
KEYS = "`sftctl train --print-config` shows every key, what it means and its default"
T = "train --model tiny --data rows.jsonl "

REFUSED = [
    ("trian", 2, "No such command 'trian'. Did you mean 'train'?", "see `sftctl --help`"),
    ("inspect run", 2, "Did you mean 'inspect-ckpt'?", "see `sftctl --help`"),
    ("chat nope", 4, "nope: no such directory", "the newest run there: `sftctl chat run`"),
    ("export run --output .", 2, ".: exists already", "choose another --output"),
    ("train --dtype bf17", 2, "train.dtype: expected auto or float32 or", KEYS),
    ("train --epochs 0", 2, "train.epochs: 0 is too small; at least 1", KEYS),
    ("train --epochs 1.5", 2, "train.epochs: expected int, got '1.5'", KEYS),
    ("train --batch-size 0", 2, "train.batch_size: 0 is too small", KEYS),
    ("train --set warmup_steps=10", 2, "did you mean optim.warmup_steps?", KEYS),
    ("train --set train.learning_rate=", 2, "did you mean optim.learning_rate?", KEYS),
    ("train --model minimind3", 2, "minimind3: neither a preset", "did you mean minimind-3?"),
    ("train --data empty.jsonl", 3, "empty.jsonl: no rows in this file", "a row is a JSON object"),
    ("train --data utf16.jsonl", 3, "utf16.jsonl: is UTF-16", "convert the file to UTF-8"),
    ("train --data prose.txt", 3, "is text, not JSON", "--set data.format=text"),
    ("train --set data.val_fraction=1", 2, "it must be below 1", KEYS),
    ("train --model cut", 2, "cut: can't be loaded", "copy or download it again"),
    ("resume keys", 2, "unknown key train.epoks; did you mean train.epochs?", KEYS),
    ("resume seed", 4, "train.seed: 0 -> 5", "undo the change, or start a new run"),
    ("resume rate --max-steps 3", 4, "optim.learning_rate: 0.001 -> 0.5",
     "allow it: --allow optim.learning_rate"),
    ("report folder", 4, "folder: not a run directory", "there: `sftctl report run`"),
    ("bench-loader --workers abc", 2, "expected whole numbers", "--workers 1,2,4"),
    ("chat run --top-p 0", 2, "--top-p: expected a number above 0", "0.95 excludes unlikely"),
    (T + "b.jsonl", 2, "b.jsonl: this is data", "`sftctl train --data b.jsonl` trains on it"),
    ("train rows.jsonl", 2, "this is data, not a conf", "`sftctl train --data rows.jsonl`"),
    ("train rows.jsonl b.jsonl", 2, "unexpected extra argument", "--data 'FOLDER/*.jsonl'"),
    ("train run.yaml", 2, "YAML is not read", "`sftctl train --print-config > run.toml`"),
    ("train --lr x", 2, "optim.learning_rate: expected float or auto, got 'x'", KEYS),
    ("prepare-data prose.jsonl", 3, "bad_shape: 1", "--format text trains on every token of it"),
    ("prepare-data rows.jsonl --format chatml", 2, "data.format: expected auto or",
     "`sftctl prepare-data --help` shows the options"),
    ("prepare-data rows.jsonl --chat-template chat", 2, "chat: No such file", "or chatml"),
    ("resume run/checkpoints/step-00000001", 4, "a checkpoint; resume needs its run",
     "type `sftctl resume run`"),
    ("report run/checkpoints/step-00000001", 4, "not a run directory", "`sftctl report run`"),
    ("resume run --epochs 3", 2, "nothing to train: train.max_steps: 1 step",
     "`sftctl resume run --max-steps N` trains longer"),
    ("train --resume", 2, "No such option: --resume", "`sftctl resume RUN_DIR` continues a run"),
    ("train -o run", 2, "run: exists already", "continue it with `sftctl resume run`"),
    ("train --model folder", 2, "no config.json in this directory", "has config.json and its"),
    ("inspect-ckpt folder", 4, "folder: neither a run nor a checkpoint", "known are a run of"),
    ("resume folder", 4, "folder: not a run directory", "run there: `sftctl resume run`"),
    ("report run --output rows.jsonl", 2, "exists already, and is not", "choose another --output"),
    ("inspect-ckpt nope", 4, "nope: no such file", "`sftctl inspect-ckpt run`; `sftctl runs .`"),
    ("resume no/x", 4, "no/x: no such run directory", "start one with `sftctl train`"),
    ("bench-loader --run nope", 4, "nope: no such run", "`sftctl bench-loader --run run`"),
    ("init rows.jsonl b.jsonl", 2, "unexpected extra argument", "in quotes, such as 'FOLDER/"),
    ("resume gone", 3, "gone.jsonl: missing", "put it back, or correct the key"),
    ("train optim.learning_rate=1", 2, "=1: No such file", "--set optim.learning_rate=1 sets a"),
    ("train --model folder --adapter lora", 2, "lora/adapter_config.json: No", "--lora trains a"),
    ("chat run --prompt ''", 2, "the prompt is empty", 'use `--prompt "'),
]  # fmt: skip
WARNED = [
    (T + "--data half.jsonl", "rows: 25% of the rows are dropped (broken_json 10)"),
    (T + "--learning-rate 0", "the learning rate is 0: no weight will change"),
    (T + "--nproc-per-node 64", "64 ranks on"),
    (T + "--eval-interval 1", "there is no validation data; data.val_fraction = 0.05 holds"),
]
SAMPLES = {  # typed in place of the words of a hint that are in capitals
    "RUN_DIR": "run", "N": "2", "'FOLDER/*.jsonl'": "rows.jsonl",
}  # fmt: skip


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is typed in the table."""
    from sftctl.config.load import load_config
    from sftctl.train.run import run_training

    folder = tmp_path_factory.mktemp("tried")
    files = {
        "rows.jsonl": ROW * 20, "b.jsonl": ROW, "half.jsonl": (ROW + "{broken\n") * 10,
        "empty.jsonl": "", "prose.txt": "Hello there\n", "prose.jsonl": '{"text": "Once"}\n',
        "run.yaml": "train:\n  epochs: 2\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "utf16.jsonl").write_bytes(ROW.encode("utf-16"))
    (folder / "folder").mkdir()
    values = {"model.name": "tiny", "train.max_steps": 1, "data.path": str(folder / "rows.jsonl")}
    run = run_training(load_config(None, values | {"output_dir": str(folder / "run")})).run_dir
    for name, line, other in (
        ("keys", "epochs =", "epoks ="),
        ("seed", "seed = 0", "seed = 5"),
        ("rate", "learning_rate = 0.001", "learning_rate = 0.5"),
        ("gone", 'rows.jsonl"', 'gone.jsonl"'),
    ):
        toml = shutil.copytree(run, folder / name) / "config.toml"
        assert line in toml.read_text()
        toml.write_text(toml.read_text().replace(line, other))
    os.utime(run / "metrics.jsonl", (2**32, 2**32))  # the newest
    no_seal = shutil.ignore_patterns("manifest.json*")
    weights = shutil.copytree(run / "final", folder / "cut", ignore=no_seal) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


@pytest.fixture
def here(tried: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tried)
    return tried


@pytest.mark.parametrize(("typed", "exit_code", "error", "hint"), REFUSED)
def test_a_mistake_is_refused_with_what_to_type_instead(
    sftctl: Sftctl, here: Path, typed: str, exit_code: int, error: str, hint: str
) -> None:
    before = {*here.iterdir()}
    result = sftctl(*shlex.split(typed))
    assert (result.exit_code, error in result.error) == (exit_code, True), result.stderr
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1 and hint in hints[0], result.stderr
    assert {*here.iterdir()} == before
    for command in re.findall(r"`sftctl ([^`]+)`", hints[0]):
        retype(sftctl, command)


def retype(sftctl: Sftctl, command: str) -> None:
    """Type the command of a hint, unless it would train or write something."""
    words = [SAMPLES.get(word, word) for word in shlex.split(command.partition(" > ")[0])]
    if words[0] in ("train", "resume") and not {"--help", "--print-config"} & {*words}:
        words.append("--dry-run")
    if words[0] == "train" and "--print-config" not in words:
        words += ["--model", "tiny"]
    if words[0] not in ("report", "chat", "bench-loader"):
        assert sftctl(*words).exit_code == 0, words


@pytest.mark.parametrize(("typed", "warning"), WARNED)
def test_a_setting_that_is_probably_a_mistake_is_a_warning(
    sftctl: Sftctl, here: Path, typed: str, warning: str
) -> None:
    result = sftctl(*shlex.split(typed), "--dry-run")
    assert result.exit_code == 0
    assert any(
        line.startswith("warning") and warning in line for line in result.stdout.splitlines()
    )
