"""Options that a command does not have: the hint names the key, or our name for another tool's."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import sftctl as package
from sftctl.cli.app import app
from sftctl.cli.guide.foreign import plain
from sftctl.cli.guide.hints import OTHERS, hint_for, options_of, unknown_option
from sftctl.config.keys import keys
from sftctl.config.load import load_config
from tests.toys.commands import OTHER_TOOLS, Result, untypeable
from tests.toys.docs.pages import DOCS_FOLDER

Sftctl = Callable[..., Result]
COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train --warmup-steps 3", "--set optim.warmup_steps=3"),
        ("train --weight-decay=0.1", "--set optim.weight_decay=0.1"),
        ("train --val-fraction 0.1", "--set data.val_fraction=0.1"),
        ("train --learning_rate 1e-4", "did you mean --learning-rate?"),
        ("train --epoch 2", "did you mean --epochs?"),
        ("train --batch_size 2", "did you mean --batch-size?"),
        ("train --bf16", "--dtype bfloat16"),
        (
            "train --per-device-train-batch-size 4",
            "--batch-size 4; counts all ranks, while other tools",
        ),
        ("train --packing", "not needed: rows are joined without padding"),
        ("train --from_weight x.pth", "--model x.pth; a directory, or a .pth file of MiniMind"),
        ("train --hidden_size 512", "--model takes a preset (minimind-3)"),
        ("train --from_resume 1", "`sftctl resume RUN_DIR` continues a run"),
        ("train --save-dir x", "--output-dir x; one directory for each run"),
        ("train --gpus 2", "--nproc-per-node"),
        ("train --gradient_checkpointing", "--set train.activation_checkpointing=true"),
        ("train --gradient_checkpointing false", "--set train.activation_checkpointing=false"),
        ("train --completion_only_loss false", "--set data.train_on=all; the default is assistant"),
        ("prepare-data --assistant_only_loss=False", "--train-on all; "),
        ("train --assistant_only_loss", "--set data.train_on=assistant; "),
        ("train --train_on_inputs true", "--set data.train_on=all; "),
        ("train --mask_history false", "--set data.train_on=assistant; "),
        ("train --bf16 false", "--dtype float32\n"),
        ("train --bf16=true", "--dtype bfloat16\n"),
        ("train --no_cuda false", "--device auto\n"),
        ("train --mixed_precision no", "--dtype float32\n"),
        ("train --eval_strategy no", "--eval-interval 0\n"),
        ("train --torch_compile false", "--no-compile\n"),
        ("train --dataloader_pin_memory=false", "--pin-memory off\n"),
        ("train --use_moe 0", "--model minimind-3\n"),
        ("train --report_to none", "leave it out: this is the default"),
        ("train --report_to tensorboard", "--set tracking.trackers=tensorboard\n"),
        ("train --report_to mlflow", "--set tracking.trackers=mlflow; one of wandb, tensorboard"),
        ("train --template qwen", "the chat template of the model is used; --chat-template FILE"),
        ("train --lora_r 8", "--lora --set adapter.rank=8\n"),
        ("train --lora --lora_alpha=16", "--set adapter.alpha=16\n"),
        ("train --target_modules all-linear", "leave it out: the default is every linear layer"),
        ("train --target_modules *.q_proj", "--lora --set adapter.targets='*.q_proj'\n"),
        ("train --finetuning_type full", "--no-lora\n"),
        ("train --use_lora", "--lora\n"),
        ("train --qlora", "--lora --set adapter.quantize=nf4\n"),
        ("train --load_in_4bit true", "--lora --set adapter.quantize=nf4\n"),
        ("train --load_in_4bit false", "leave it out: this is the default"),
        ("train --load_in_8bit", "--lora --set adapter.quantize=nf4; only 4 bits, not 8"),
        ("prepare-data --lora_r 8", "`sftctl train --set adapter.lora=true --set adapter.rank=8`"),
        ("train --validation_file x", "`sftctl prepare-data FILE --val-input FILE`, then"),
        ("train --dataset_text_field text", "--set data.format=text; every token is trained"),
        (
            "train --dataset_text_field body",
            "--set data.format=text --set data.columns=text=body; every token is trained",
        ),
        ("prepare-data --dataset_text_field a", "--format text --columns text=a; every token"),
        ("train --attn_implementation sdpa", "leave it out: the device decides the attention"),
        ("train --neftune_noise_alpha 5", "leave it out: the loss is always plain"),
        ("train --use_liger_kernel", "leave it out: the loss is already computed in chunks"),
        ("train --eos_token x", "not needed: the chat template writes the end-of-turn"),
        ("train --ddp", "leave it out: --nproc-per-node N starts N ranks"),
        ("train --use_wandb", "--wandb; MiniMind logs to SwanLab"),
        ("train --use_wandb=false", "--no-wandb\n"),
        (
            "train --saves_per_epoch 4",
            "--save-interval N; a number of steps: `sftctl train --dry-run`",
        ),
        ("train --train.micro_batch_size 2", "--batch-size 2; counts all ranks"),
        ("train --optimizer.lr 1e-4", "--learning-rate 1e-4\n"),
        ("train --eval.interval 9", "did you mean --eval-interval?"),
        ("train --precision bf16-true", "--dtype bfloat16\n"),
        ("train --quantize bnb.nf4-dq", "--lora --set adapter.quantize=nf4\n"),
        ("train --loraplus_lr_ratio 16", "[optim.groups] in RUN.toml"),
        ("train --freeze_trainable_layers 3", "--set train.train_only='layers[-3:]'; the last"),
        (
            "train --enable_thinking false",
            "--set data.template_options='{enable_thinking=false}'\n",
        ),
        ("train --disable_gradient_checkpointing", "--set train.activation_checkpointing=false\n"),
        ("train --load_best_model_at_end false", "--set train.final=last\n"),
        ("train --xyz", "`sftctl train --help` shows the options"),
        ("prepare-data --cutoff_len 99", "--max-seq-len 99"),
        ("resume run --lr 1e-4", "resume has no option for it: write optim.learning_rate = 0.0001"),
        ("resume run --gradient_checkpointing", "resume has no option for it: write train.activ"),
        (
            "resume run --dtype bf16",
            'resume has no option for it: write train.dtype = "bfloat16" into run/config.toml',
        ),
        ("chat --bf16", "`sftctl chat --help` shows the options"),
        ("chat --temp 0.7", "did you mean --temperature?"),
        ("init faq.csv --format csv", "data.format: expected auto or messages"),
        ("init faq.csv --format text", "`sftctl train --set data.format=text`"),
        ("init faq.csv --lr 3", "`sftctl train --set optim.learning_rate=3`"),
        ("train --early-stopping", "did you mean --set train.patience=VALUE"),
        ("train --patience_steps 3", "did you mean --set train.patience=VALUE"),
        ("train --max 3", "did you mean --max-steps or --max-seq-len or --max-restarts"),
        ("report --open", "leave it out: `sftctl report RUN_DIR` prints"),
        ("resume run --gpus 2", "--nproc-per-node"),
        ("export run --output-dir x", "did you mean --output?"),
    ],
)
def test_the_hint_for_an_unknown_option(sftctl: Sftctl, typed: str, hint: str) -> None:
    result = sftctl(*typed.split())
    assert result.exit_code == 2
    assert result.error.startswith("error: No such option: --")
    assert f"\nhint: {hint}" in result.stderr


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train -e 3", "did you mean --epochs or --eval-interval?"),
        ("train -d x", "did you mean --data or --"),
        ("train -m x", "did you mean --model or --max-steps or --"),
        ("train -lr 1", "did you mean --lr?"),
    ],
)
def test_the_hint_for_an_unknown_letter(sftctl: Sftctl, typed: str, hint: str) -> None:
    assert f"\nhint: {hint}" in sftctl(*typed.split()).stderr


FOREIGN_KEYS: dict[str, tuple[str, str]] = {
    "an option of TRL": (
        "[train]\nper_device_train_batch_size = 4",
        "write batch_size = 4 in [train]; counts all ranks, while other tools count one process",
    ),
    "without a section": ("num_train_epochs = 3", "write epochs = 3 in [train]"),
    "in a section of another tool": (
        "[training_args]\ngradient_checkpointing = true",
        "write activation_checkpointing = true in [train]",
    ),
    "turned off": (
        "[train]\ngradient_checkpointing = false",
        "write activation_checkpointing = false in [train]",
    ),
    "a text": ("[data]\ndataset_path = 'x.jsonl'", 'write path = "x.jsonl" in [data]; a file or'),
    "an adapter's": (
        "[peft]\nlora_alpha = 8",
        "write lora = true in [adapter] and alpha = 8.0 in [adapter]",
    ),
    "a key that is not needed": (
        "[train]\npacking = true",
        "not needed: rows are joined without padding",
    ),
    "after a known one": (
        "[optim]\nlearning_rate = 1e-3\nlr = 2",
        "write learning_rate = 2.0 in ",
    ),
    "of nobody": ("[train]\nfrobnicate = 1", "`sftctl train --print-config` shows every key"),
    "a table": ("[optim]\nlr = {a = 1}", 'write learning_rate = "VALUE" in [optim]'),
}


@pytest.mark.parametrize("kind", FOREIGN_KEYS)
def test_a_key_of_another_tool_in_a_file_has_the_line_to_write(
    sftctl: Sftctl, tmp_path: Path, kind: str
) -> None:
    text, hint = FOREIGN_KEYS[kind]
    (file := tmp_path / "run.toml").write_text(text)
    result = sftctl("train", file)
    assert result.exit_code == 2 and result.error.startswith(f"error: {file}: unknown key ")
    assert f"hint: {hint}" in result.stderr
    lines = re.findall(r"(\w+ = [^ ;]+) in \[(\w+)\]", result.stderr)
    (file := tmp_path / "right.toml").write_text("\n".join(f"{s}.{one}" for one, s in lines))
    if kind != "a table":
        load_config(file)  # what it says can be read


def test_a_key_of_another_tool_after_set_is_answered_as_an_option(sftctl: Sftctl) -> None:
    result = sftctl("train", "--set", "per_device_train_batch_size=4")
    assert "hint: --batch-size 4; counts all ranks" in result.stderr
    result = sftctl("train", "--set", "train.num_train_epochs=3")
    assert "hint: --epochs 3" in result.stderr


def test_a_hint_of_the_data_for_init_names_a_command_that_has_the_option(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "once upon a time"}\n')
    (tmp_path / "notes.txt").write_text("once upon a time\n")
    for name in ("texts.jsonl", "notes.txt"):
        stderr = sftctl("init", name).stderr
        assert "`sftctl train --data FILE --set data.format=text` trains on every token" in stderr


def test_every_answer_names_a_key_and_can_be_typed() -> None:
    for name, answer in OTHERS.items():
        for one in (answer, *answer.by_value.values()):
            assert one.key is None or one.key in (*keys(), "output_dir"), name
            assert not re.search("[()]", one.words) or one.key is None, name  # no shell reads it
        if f"--{name}".replace("_", "-") not in options_of(COMMANDS["train"]):
            hint = answered(f"--{name}")
            assert "`sftctl train --help`" not in hint, name
            result = Result(2, "", f"hint: {hint}")
            assert untypeable(result, ["train"]) == [], name


def answered(option: str) -> str:
    """The hint for an option that train does not have."""
    return unknown_option(option, COMMANDS["train"], ["train", option, "3"])


def names_of_other_tools() -> list[str]:
    """The settings in the first columns of docs/migrating.md, without commands and values."""
    page = (DOCS_FOLDER / "migrating.md").read_text(encoding="utf-8").partition("\n## ")[2]
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    words = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    return [word for word in words if re.fullmatch(r"(--)?[a-z][a-z0-9_.]*(?<!\.py)", word)]


def test_every_setting_that_the_page_for_migrants_names_is_answered() -> None:
    names = names_of_other_tools()
    assert len(names) > 200
    ours = {plain(option) for option in options_of(COMMANDS["train"])}
    unknown = [name for name in names if plain(name) not in ours]
    strays = [name for name in unknown if "--help`" in answered(f"--{name.lstrip('-')}")]
    assert strays == []


@pytest.mark.parametrize(
    ("hint", "train", "prepare"),
    [
        ("remove it, or --special-text escape", "--set data.special_text=escape", None),
        ("--columns text=NAME names it", "--set data.columns=text=NAME names it", None),
        ("lower --val-fraction", "lower data.val_fraction", None),
        ("prepare-data --chat-template FILE", "prepare-data --chat-template FILE", None),
        ("give it an option (--template-option)", "(data.template_options)", "(--template-option)"),
        ("raise --max-seq-len", "raise --max-seq-len", None),
    ],
)
def test_a_hint_names_options_of_the_command_that_was_typed(
    hint: str, train: str, prepare: str | None
) -> None:
    assert train in hint_for(hint, COMMANDS["train"])
    assert (prepare or hint) in hint_for(hint, COMMANDS["prepare-data"])


def test_resume_has_no_flag_for_a_key_and_names_the_file_that_has_it() -> None:
    for hint, said in (
        ("--device auto uses what is there", 'train.device = "auto" in config.toml uses what is'),
        ("lower --val-fraction", "lower data.val_fraction"),
        ("--epochs 3 is enough", "--epochs 3 is enough"),
        ("prepare-data --chat-template FILE", "prepare-data --chat-template FILE"),
    ):
        assert said in hint_for(hint, COMMANDS["resume"])


def test_every_option_in_a_text_of_this_program_exists() -> None:
    known = {name for command in COMMANDS.values() for name in options_of(command)}
    known |= {"--help", "--version", "--like-this", "--no", "--install-completion"}
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        if path.name.startswith("foreign") or path.parent.name in ("formats", "trainers"):
            continue  # they name options of other tools
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if any(tool in node.value for tool in OTHER_TOOLS):
                    continue
                named = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", node.value)}
                assert named <= known, f"{path}: {named - known}"


@pytest.mark.parametrize(
    ("short", "section", "key", "value"),
    [
        (["--lr", "1e-4"], "optim", "learning_rate", 1e-4),
        (["-b", "3"], "train", "batch_size", 3),
        (["--dtype", "bf16"], "train", "dtype", "bfloat16"),
        (["--dtype", "fp32"], "train", "dtype", "float32"),
        (["--set", "train.dtype=fp16"], "train", "dtype", "float16"),
    ],
)
def test_short_names(
    sftctl: Sftctl, short: list[str], section: str, key: str, value: object
) -> None:
    shown = sftctl("train", *short, "--print-config", "--json").stdout
    assert json.loads(shown)[section][key] == value


def test_every_command_has_a_short_help(sftctl: Sftctl) -> None:
    for name in COMMANDS:
        assert "Usage: " in sftctl(name, "-h").stdout
    for name in ("train", "prepare-data", "export", "report"):
        assert "-o" in options_of(COMMANDS[name])


@pytest.mark.parametrize("width", [72, 80, 200])
def test_the_help_of_a_command_has_examples_and_every_option_without_its_type(
    sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name, command in COMMANDS.items():
        text = sftctl(name, "--help").stdout
        assert text.startswith(f"Usage: sftctl {name} [OPTIONS]")
        assert max(map(len, text.splitlines())) <= min(width, 100)
        assert not re.search(r"<(int|str|bool|float|path|list)", text)
        assert options_of(command).keys() <= {*re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)}
