"""Steps and events as plain lines."""

import io
from pathlib import Path

import pytest

from sftctl.tracking.lines import LineTracker, event_line
from tests.toys.metrics import run_shape, step_metrics


def test_a_step_is_a_line_with_its_numbers_speed_and_time_left() -> None:
    stream = io.StringIO()
    tracker = LineTracker(run_shape(), stream)
    for step in range(101, 121):
        tracker.log(step_metrics(step))
    assert stream.getvalue().splitlines()[-1] == (
        "step   120/640  epoch 1  loss 3.4121  lr 9.1e-04  grad 0.83"
        "  5120 tok/s  wait 1.0%  eta 0:52"
    )


def test_there_is_a_line_every_log_interval_and_one_at_the_last_step() -> None:
    stream = io.StringIO()
    tracker = LineTracker(run_shape(log_interval=100, first_step=350), stream)
    for step in range(351, 641):
        tracker.log(step_metrics(step))
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["step   400", "step   500"] + [
        "step   600",
        "step   640",
    ]


@pytest.mark.parametrize(
    ("name", "fields", "line"),
    [
        (
            "started",
            {"run_dir": "runs/a", "num_parameters": 3672832, "num_examples": 320}
            | {"num_trained": 3672832, "total_steps": 40, "dtype": "float32", "device": "cpu"},
            "started runs/a: 3,672,832 parameters, 320 examples, 40 steps, float32 on cpu",
        ),
        (
            "started",
            {"run_dir": "runs/a", "num_parameters": 3672832, "num_examples": 320}
            | {"num_trained": 12, "total_steps": 40, "dtype": "float32", "device": "cpu"},
            "started runs/a: 3,672,832 parameters, of which 12 are trained, 320 examples, "
            "40 steps, float32 on cpu",
        ),
        ("resumed", {"checkpoint": "step-00000100"}, "resumed at step 100 from step-00000100"),
        (
            "evaluation",
            {"validation_loss": 7.62411, "num_target_tokens": 9},
            "evaluation at step 100: validation loss 7.6241",
        ),
        (
            "saved",
            {
                "path": Path("runs/a/checkpoints/step-00000100"),
                "num_bytes": 12345678,
                "seconds": 0.2,
            },
            "saved step-00000100 (12.3 MB in 0.2 s)",
        ),
        ("save_failed", {"error": "no space"}, "save failed at step 100: no space"),
        ("failed", {"kind": "DataError", "message": "damaged"}, "failed at step 100"),
        ("stopped", {"signal": "SIGTERM"}, "stopped by SIGTERM at step 100"),
        ("finished", {}, "finished at step 100"),
        ("sample", {"number": 1, "reply": "It is\nParis."}, "sample 1 at step 100: It is Paris."),
        ("sample", {"number": 0, "reply": "x" * 200}, f"sample 0 at step 100: {'x' * 60} …"),
        (
            "sample",
            {"number": 0, "question": "a" * 50, "reply": "b"},
            f"sample 0 at step 100: …{'a' * 30} -> b",
        ),
        ("warning", {"message": "low disk"}, "warning: low disk"),
        ("something_new", {"x": 1}, "something_new at step 100"),
    ],
)
def test_an_event_is_a_sentence(name: str, fields: dict[str, object], line: str) -> None:
    assert event_line(name, 100, fields) == line


def test_control_characters_in_a_message_become_blanks() -> None:
    line = event_line("warning", 1, {"message": "a\nb\x1b[2Jc\r模型"})
    assert line == "warning: a b [2Jc 模型"


def test_braces_in_a_message_are_shown_as_they_are() -> None:
    assert event_line("warning", 1, {"message": "{step} {x}"}) == "warning: {step} {x}"
