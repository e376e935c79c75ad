"""The screens of the commands: how a run ended, a dry run's curve, a run's checkpoints."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from sftctl.cli.show.checkpoint import checkpoint_report
from sftctl.cli.show.dry_run import plot
from sftctl.cli.show.run import run_summary
from sftctl.cli.show.tensors import diff_report, statistics_table
from sftctl.inspection.diff import diff
from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.inspection import Inspection
from sftctl.inspection.tensors.statistics import tensor_statistics
from sftctl.metrics import RunSummary
from sftctl.train.run import run_training
from sftctl.trained.checks import check_export
from tests.toys.commands import Result
from tests.toys.runs import lora_config, toy_config

Sftctl = Callable[..., Result]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("two")
    return run_training(toy_config(folder, train__max_steps=2)).run_dir


def ended(**values: object) -> str:
    """The summary of a run that was stopped at step 7 of 9, changed by `values`."""
    known: dict[str, object] = {
        "run_dir": Path("run"), "status": "stopped", "step": 7, "total_steps": 9,
        "first_validation_loss": 4.0, "validation_loss": 4.0, "validation_step": 0, "loss": 3.0,
        "num_tokens": 70, "num_skipped": 0, "wall_time_s": 9.0, "training_time_s": 2.0,
    }  # fmt: skip
    return str(run_summary(RunSummary(**(known | values))))  # type: ignore[arg-type]


def printed(screen: RenderableType, width: int) -> list[str]:
    """The lines of a screen on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(screen)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_stopped_run_says_how_to_resume_it() -> None:
    assert ended().splitlines() == [
        "stopped and saved: step 7 of 9",
        "validation loss 4.0000 before the first step, not measured since",
        "70 tokens in 2.0 s (35 per second)",
        "resume:   sftctl resume run",
        "inspect:  sftctl inspect-ckpt run",
        "report:   sftctl report run",
    ]


def test_a_finished_run_says_how_to_use_it_with_its_path_quoted() -> None:
    text = ended(status="finished", step=9, run_dir=Path("my run"), validation_step=None)
    assert text.splitlines() == [
        "finished: step 9 of 9",
        "loss 3.0000 in the last step; there is no validation set",
        "70 tokens in 2.0 s (35 per second)",
        "chat:     sftctl chat 'my run'",
        "export:   sftctl export 'my run'",
        "inspect:  sftctl inspect-ckpt 'my run'",
        "report:   sftctl report 'my run'",
    ]
    assert "\nlonger:   sftctl resume run --epochs N" in ended(
        status="finished", step=9, to_train_longer="--epochs N"
    )
    nothing = ended(status="nothing_to_do", training_time_s=0.0, validation_step=None, loss=None)
    assert nothing.splitlines()[:2] == [
        "already finished: step 7 of 9",
        "chat:     sftctl chat run",
    ]


def test_an_adapter_run_names_the_export_that_merges_it(sftctl: Sftctl, tmp_path: Path) -> None:
    run_training(lora_config(tmp_path, train__max_steps=1))
    lines = sftctl("resume", "run").stdout.splitlines()
    (export,) = [line for line in lines if line.startswith("export: ")]
    assert export == "export:   sftctl export run --merge"
    check_export(Path("run"), Path("new"), "float32", merge=True)  # it is not refused


@pytest.mark.parametrize(
    ("last", "step", "line"),
    [
        (2.0, 5, "validation loss 4.0000 -> 2.0000 (x 0.50), at step 5"),
        (2.0, 7, "validation loss 4.0000 -> 2.0000 (x 0.50)"),
        (None, 7, "validation loss 4.0000 -> nan is not finite; look at the weights: "
                  "sftctl inspect-ckpt run --tensors"),
    ],
)  # fmt: skip
def test_the_validation_loss_is_shown_with_its_step(
    last: float | None, step: int, line: str
) -> None:
    assert ended(validation_loss=last, validation_step=step).splitlines()[1] == line


def test_without_validation_the_loss_of_the_last_step_is_shown() -> None:
    text = ended(status="finished", validation_step=None, loss=0.75)
    assert "\nloss 0.7500 in the last step; there is no validation set\n" in text
    assert "\nloss 0.7500 in the last step\n" in ended(validation_step=None, loss=0.75)


@pytest.mark.parametrize(
    ("max_steps", "epochs", "flags"),
    [(None, 1, "--epochs N"), (1, 9, "--max-steps N"), (1, 1, "--epochs N --max-steps N")],
)
def test_the_end_of_a_run_names_what_ended_it(
    tmp_path: Path, max_steps: int | None, epochs: int, flags: str
) -> None:
    length: dict[str, Any] = {"train__max_steps": max_steps, "train__epochs": epochs}
    config = toy_config(tmp_path, train__batch_size=22, **length)
    summary = run_training(config)
    assert (summary.step, summary.to_train_longer) == (summary.total_steps, flags)


def test_steps_without_an_update_are_counted() -> None:
    assert "\n1 step without an update: the loss or gradient was not finite\n" in ended(
        num_skipped=1
    )


def test_the_curve_of_a_dry_run_has_its_peak_at_the_top_and_its_last_step_below() -> None:
    assert list(plot([(1, 0.5), (2, 1.0), (3, 0.25), (4, 0.0)], "*")) == [
        " 1.00e+00 | *",
        " 7.50e-01 |",
        " 5.00e-01 |*",
        " 2.50e-01 |  *",
        " 0.00e+00 |   *",
        "          +----",
        "           1 step 4",
    ]
    assert list(plot([(1, 0.0)], "*"))[4] == " 0.00e+00 |*"


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (120, ["name", "step", "epoch", "loss", "LR", "size", "saved", "complete"]),
        (80, ["name", "step", "epoch", "loss", "LR", "size", "saved", "complete"]),
        (60, ["name", "step", "epoch", "loss", "size", "complete"]),
        (40, ["name", "step", "loss", "complete"]),
    ],
)
def test_the_checkpoints_of_a_run_lose_columns_and_no_letters(
    two_steps: Path, width: int, heads: list[str]
) -> None:
    lines = printed(checkpoint_report(inspect_path(two_steps)), width)
    table = lines[lines.index("checkpoints of the run") + 1 :]
    assert table[0].split() == heads
    assert [(row.split()[0], row.split()[1], row.split()[-1]) for row in table[1:]] == [
        ("step-00000001", "1", "yes"),
        ("step-00000002", "2", "yes"),
    ]
    assert not any("…" in row for row in table)
    assert max(map(len, table)) <= width


@pytest.mark.parametrize(
    ("stored", "shown", "in_table"),
    [
        ((0, 3), "1 of 2, step 3 of 4 in the epoch (75%)", "1"),
        ((1, 0), "1 of 2 done", "1"),
        ((1, 2), "2 of 2, step 2 of 4 in the epoch (50%)", "2"),
        ((2, 0), "2 of 2 done", "2"),
        ((0, 0), "1 of 2, step 0 of 4 in the epoch (0%)", "1"),
    ],
)
def test_epochs_of_a_run_count_from_1_and_of_another_tool_as_they_are_stored(
    stored: tuple[int, int], shown: str, in_table: str
) -> None:
    counts = dict(zip(("epoch", "step_in_epoch"), stored, strict=True))
    facts = {**counts, "steps_per_epoch": 4, "total_steps": 8}
    one = Inspection(path=Path("step-00000001"), format="sftctl checkpoint", facts=facts)
    lines = printed(checkpoint_report(replace(one, checkpoints=[one])), 120)
    assert f"epoch       {shown}" in lines
    table = lines[lines.index("checkpoints of the run") + 1 :]
    assert table[1].split()[table[0].split().index("epoch")] == in_table
    theirs = replace(one, format="Lightning checkpoint file", epoch_counts="from 0")
    assert any(
        line.startswith(f"epoch       {stored[0]}") and line.endswith((" (from 0)", " done"))
        for line in printed(checkpoint_report(theirs), 120)
    )


@pytest.mark.parametrize("width", [80, 120])
def test_tables_of_tensors_and_of_two_checkpoints_keep_complete_cells(
    two_steps: Path, width: int
) -> None:
    report = inspect_path(two_steps)
    assert report.checkpoints is not None
    for screen in (
        statistics_table(tensor_statistics(report)),
        diff_report(diff(*report.checkpoints)),
    ):
        lines = printed(screen, width)
        assert any("model.layers.0.mlp.down_proj.weight" in line for line in lines)
        rows = [line for line in lines if "_proj" in line]
        assert rows and not any("…" in row or len(row) > width for row in rows)


def test_the_verdict_of_an_inspection_comes_before_its_facts(two_steps: Path) -> None:
    names = [
        line.split("  ")[0] for line in printed(checkpoint_report(inspect_path(two_steps)), 80)
    ]
    order = ["checkpoint", "resumable", "complete", "verified", "format", "step", "size"]
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
