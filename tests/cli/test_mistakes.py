"""Mistakes that people make, and the exact error and hint for each."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.source import hub_resolves
from tests.toys.commands import Result
from tests.toys.warm import run_warm

Sftctl = Callable[..., Result]
TINY = ["--model", "tiny", "--max-steps", "3", "--batch-size", "8"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared `store` and a finished `run`."""
    from sftctl.config.load import load_config
    from sftctl.data.prepare.prepare import prepare_files
    from sftctl.data.sample import sample_files
    from sftctl.train.run import run_training

    folder = tmp_path_factory.mktemp("trained")
    values = {"model.name": "tiny", "train.max_steps": 3, "train.batch_size": 8}
    prepare_files([sample_files()[0]], [], folder / "store", load_config())
    run_training(load_config(None, values | {"output_dir": str(folder / "run")}))
    return folder


@pytest.fixture
def here(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of `store` and `run`, and with `model`, a Hugging Face directory."""
    shutil.copytree(trained / "store", tmp_path / "store")
    shutil.copytree(trained / "run", tmp_path / "run")
    no_seal = shutil.ignore_patterns("manifest.json*")  # so that a test may change its files
    shutil.copytree(trained / "run/final", tmp_path / "model", ignore=no_seal)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def describe_model(folder: Path, **values: int) -> None:
    """Change config.json and remove the weights, which the check must not need."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    (folder / "model.safetensors").unlink()


def refused(result: Result, exit_code: int, error: str, hint: str) -> None:
    """stderr holds this error and this hint, and otherwise only the lines of a plan."""
    assert (result.exit_code, result.error) == (exit_code, f"error: {error}")
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    assert hints == [f"hint: {hint}"]
    assert "Traceback" not in result.stderr


def test_a_wrong_path(sftctl: Sftctl, here: Path) -> None:
    (here / "chat.jsonl").touch()
    for command in (["train", *TINY, "--data"], ["prepare-data", "--output", "new"]):
        refused(
            sftctl(*command, "chats.jsonl"),
            3,
            "chats.jsonl: no such file or directory",
            "did you mean chat.jsonl?",
        )


def test_standard_input_for_train(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("train", *TINY, "--data", "-"),
        3,
        "--data -: train does not read standard input, because it can be read only once",
        "run `sftctl prepare-data - --output STORE` first, then train with --data STORE",
    )


def test_a_directory_without_a_tokenizer(sftctl: Sftctl, here: Path) -> None:
    (here / "model/tokenizer.json").unlink()
    refused(
        sftctl("train", *TINY, "--tokenizer", "model"),
        2,
        "model: no tokenizer.json in this directory, so there is no tokenizer in it",
        "`AutoTokenizer.from_pretrained(…).save_pretrained(DIR)` writes one",
    )
    for flag, folder, name in (
        ("--tokenizer", "run/final", "tokenizer"),
        ("--model", "run/final", "config"),
    ):
        result = sftctl("train", *TINY, flag, "run")
        assert result.error.startswith(f"error: run: no {name}.json in this directory")
        assert f"hint: did you mean {folder}?" in result.stderr


def test_a_place_where_nothing_can_be_written(sftctl: Sftctl, here: Path) -> None:
    for place, reason in (
        ("/proc/nope", "No such file or directory"),
        ("chats/run", "Not a directory"),
    ):
        (here / "chats").touch()
        for command in (["train", *TINY], ["train", *TINY, "--dry-run"]):
            refused(
                sftctl(*command, "--output-dir", place),
                2,
                f"{place}: the run directory can't be made: {reason}",
                "choose another --output-dir, where you may write",
            )


def test_a_device_that_is_not_there(sftctl: Sftctl, here: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("here is one")
    refused(
        sftctl("train", *TINY, "--device", "cuda"),
        2,
        "train.device: cuda is set, but torch finds no CUDA device",
        f"--device auto uses what is available; is torch {torch.__version__} built for CUDA?",
    )


def test_a_wrong_key(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("train", "--set", "optim.learnin_rate=1e-5"),
        2,
        "unknown key optim.learnin_rate; did you mean optim.learning_rate?",
        "`sftctl train --print-config` shows every key, what it means and its default",
    )


def test_a_wrong_type(sftctl: Sftctl, here: Path) -> None:
    (here / "run.toml").write_text('[train]\nepochs = "two"\n[optim]\ngrad_clip = true\n')
    refused(
        sftctl("train", "run.toml"),
        2,
        "run.toml: train.epochs: expected int, got 'two'; "
        "run.toml: optim.grad_clip: expected float, got True",
        "`sftctl train --print-config` shows every key, what it means and its default",
    )


def test_a_vocabulary_that_does_not_fit(sftctl: Sftctl, here: Path) -> None:
    describe_model(here / "model", vocab_size=100)
    refused(
        sftctl("train", "--model", "model", "--data", "store", "--output-dir", "new"),
        2,
        f"tokenizer {here}/store/tokenizer has 2048 ids, the model has embeddings for 100",
        "prepare the data with the model's own tokenizer, without ids from 100 on",
    )
    assert not (here / "new").exists()


def test_a_sequence_that_is_too_long(sftctl: Sftctl, here: Path) -> None:
    describe_model(here / "model", max_position_embeddings=16)
    refused(
        sftctl("train", "--model", "model", "--data", "store", "--output-dir", "new"),
        2,
        "data.max_seq_len: 198 is beyond the model's 16 positions",
        "prepare the data again with --max-seq-len 16",
    )
    refused(
        sftctl("train", *TINY, "--data", "store", "--max-seq-len", 64),
        2,
        f"data.max_seq_len: 64, but {here}/store holds an example of 198 tokens",
        "prepare the data again with --max-seq-len, or remove it from the run",
    )


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A disk of one megabyte, which only root can mount."""
    disk = here / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False)
    if os.geteuid() != 0 or made.returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_no_room_on_the_disk(sftctl: Sftctl, small_disk: Path) -> None:
    refused(
        sftctl("train", *TINY, "--output-dir", "disk/run"),
        4,
        "disk/run/checkpoints: no space for checkpoints: 5 x 2.8 MB = 13.8 MB are needed, "
        "1.0 MB are free",
        "--keep (checkpoint.keep) sets how many are kept; a save needs space for one more",
    )
    assert [*small_disk.iterdir()] == []


def test_no_room_in_memory(sftctl: Sftctl, here: Path) -> None:
    describe_model(here / "model", hidden_size=2**17, intermediate_size=2**22)
    train = ["train", "--model", "model", "--data", "store", "--output-dir", "new"]
    result = sftctl(*train, "--dtype", "float32")
    assert result.exit_code == 2
    assert result.error.startswith(
        "error: memory: too little for the training of 3,298,854,305,856 parameters: weights, "
        "gradients and optimizer take 52.8 TB, "
    )
    assert not (here / "new").exists()


def test_no_assistant_in_the_rows(sftctl: Sftctl, here: Path) -> None:
    (here / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello?"}]}\n')
    refused(
        sftctl("prepare-data", "chats.jsonl", "--output", "new"),
        3,
        "no row is left to train on out of 1 read; no_target: 1",
        "the first: chats.jsonl:1: no assistant turn to train on; remove the row",
    )


def test_a_run_that_is_finished(sftctl: Sftctl, here: Path) -> None:
    result = sftctl("resume", "run")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "already finished: step 3 of 3")
    refused(
        sftctl("train", *TINY, "--output-dir", "run"),
        2,
        "run: exists already",
        "continue it with `sftctl resume run`, or choose another --output-dir",
    )


def test_a_store_of_another_tokenizer(sftctl: Sftctl, here: Path) -> None:
    tokenizer = here / "model/tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(content))
    refused(
        sftctl("train", "--model", "model", "--data", "store"),
        3,
        f"{here}/store: prepared with tokenizer {SAMPLE_TOKENIZER}, which is not that of "
        f"{here}/model",
        f"prepare the data again with `--tokenizer {here}/model`",
    )


def test_a_final_model_that_was_edited_and_the_way_out_that_its_hint_names(
    sftctl: Sftctl, here: Path
) -> None:
    final = here / "run/final"
    size = (final / "chat_template.jinja").stat().st_size
    with (final / "chat_template.jinja").open("a") as template:
        template.write("\n")
    train = ["train", "--model", "run/final", "--data", "store", "--max-steps", 1]
    refused(
        sftctl(*train, "--output-dir", "new"),
        4,
        f"run/final: chat_template.jinja: {size + 1} bytes, the manifest says {size}",
        "`sftctl resume RUN` writes the final model of a run again; if you changed it yourself, "
        "remove its manifest.json and manifest.json.sha256",
    )
    assert not (here / "new").exists()
    (final / "manifest.json").unlink()
    (final / "manifest.json.sha256").unlink()
    assert sftctl(*train, "--output-dir", "new", "--dry-run").exit_code == 0


def test_a_model_without_a_chat_template_and_each_way_out_that_its_hint_names(
    sftctl: Sftctl, here: Path
) -> None:
    model = here / "model"
    template = (model / "chat_template.jinja").rename(here / "chat.jinja")
    (here / "rows.jsonl").write_text('{"instruction": "Say hi.", "output": "Hi."}\n')
    train = ["train", "--model", model, "--data", "rows.jsonl", "--max-steps", 1]
    prepare = ["prepare-data", "rows.jsonl", "--tokenizer", model]
    chat = ["chat", model, "--prompt", "Hi", "--max-new-tokens", 2]
    export = ["export", model, "--output", "hf"]
    for command in ([*train, "--output-dir", "a"], [*prepare, "--output", "b"], chat, export):
        refused(
            sftctl(*command),
            2,
            f"tokenizer {model}: has no chat template",
            "give one: --chat-template FILE, or --chat-template chatml",
        )
    for command in (
        [*train, "--output-dir", "a", "--chat-template", "chat.jinja"],
        [*prepare, "--output", "b", "--chat-template", "chat.jinja"],
        ["train", "--model", model, "--data", "b", "--max-steps", 1, "--output-dir", "c"],
        ["train", "--model", model, "--data", "b", "--dry-run"],
        ["chat", "c", "--prompt", "Hi", "--max-new-tokens", 2],
        [*chat, "--chat-template", "chat.jinja"],
        [*export, "--chat-template", "chatml"],
        ["chat", "hf", "--prompt", "Hi", "--max-new-tokens", 2],
        [*train, "--output-dir", "d", "--chat-template", "chatml"],
        ["resume", "d", "--max-steps", 2],
    ):
        assert sftctl(*command).exit_code == 0
    assert "<|im_end|>" in (here / "hf/chat_template.jinja").read_text()
    (here / "hf").rename(here / "hf-of-chatml")
    template.rename(model / "chat_template.jinja")
    assert sftctl(*chat).exit_code == 0
    assert sftctl(*export).exit_code == 0


def test_a_hub_name_without_a_network(
    sftctl: Sftctl, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at once, without other output: the library alone would retry for a minute."""

    def no_such_host(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setattr("sftctl.model.source.getproxies", dict)
    hub_resolves.cache_clear()
    try:
        result = sftctl("train", "--model", "someone/some-model", "--data", "store")
    finally:
        hub_resolves.cache_clear()
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    assert result.error.startswith("error: tokenizer someone/some-model: can't be loaded: ")
    assert result.stderr.splitlines()[-1] == (
        "hint: give a directory with config.json, a .gguf file, or a hub name and a network"
    )


def test_a_wrong_flag(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("train", "--learning_rate", "1e-5"),
        2,
        "No such option: --learning_rate",
        "did you mean --learning-rate?",
    )


def test_an_output_that_exists(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("prepare-data", "--output", "run"),
        2,
        "run: exists already, and is not a token store",
        "name another output, or remove it first",
    )


def test_a_broken_configuration_file(sftctl: Sftctl, here: Path) -> None:
    (here / "run.toml").write_text("[train]\nepochs = = 2\n")
    refused(
        sftctl("train", "run.toml"),
        2,
        "run.toml: not TOML: Invalid value (at line 2, column 10)",
        'write `key = value` lines below a [section], and texts in "quotes"',
    )


def test_a_directory_that_is_not_a_run(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("resume", "store"),
        4,
        "store: not a run directory (no run.json and config.toml)",
        "the newest run there: `sftctl resume run`",
    )


def test_a_cache_that_cannot_be_made(
    sftctl: Sftctl, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    result = sftctl("train", *TINY, "--output-dir", here / "new")
    assert result.exit_code == 2
    assert "file/sftctl/stores: can't create the cache: Not a directory" in result.stderr
    assert "hint: set XDG_CACHE_HOME to a folder that can be written" in result.stderr


def test_a_setting_that_wandb_refuses(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "bogus")
    # A process of its own: wandb keeps the environment it first saw.
    result = run_warm("train", *TINY, "--wandb", "--output-dir", "new")
    assert result.returncode == 2
    assert b"error: W&B refuses a setting: mode Input should be 'online'" in result.stderr
    assert b"hint: correct the WANDB_" in result.stderr


def test_a_report_of_a_missing_folder(sftctl: Sftctl, here: Path) -> None:
    result = sftctl("report", here / "nope")
    assert result.exit_code == 4
    assert "nope: no such run directory" in result.stderr


def test_the_configuration_is_printed_as_json_too(sftctl: Sftctl) -> None:
    result = sftctl("train", "--print-config", "--json", "--epochs", "3")
    assert json.loads(result.stdout)["train"]["epochs"] == 3


def test_several_data_flags_are_an_error_or_a_mixture(sftctl: Sftctl, here: Path) -> None:
    refused(
        sftctl("bench-loader", "--data", "a", "--data", "b"),
        2,
        "--data is given 2 times: a, b",
        "put them into one store: `sftctl prepare-data a b --output STORE`",
    )
    refused(
        sftctl("train", *TINY, "--data", "store", "--data", "b.jsonl"),
        3,
        "b.jsonl: no such file or directory",
        "name a file, folder or pattern of conversations; train also accepts a prepared store",
    )
    refused(
        sftctl("train", *TINY, "--data", "a.jsonl", "run.toml", "b.jsonl"),
        2,
        "Got unexpected extra argument(s) (b.jsonl)",
        "for several files, repeat --data, or use a pattern in quotes: --data 'FOLDER/*.jsonl'",
    )
    (here / "b.jsonl").write_text("{}\n")
    refused(
        sftctl("train", *TINY, "--data", "a.jsonl", "b.jsonl"),
        2,
        "b.jsonl: this is data, not a configuration",
        "`sftctl train --data b.jsonl` trains on it",
    )
