"""What the sections of the page say about checkpoints, events, samples, settings and data."""

import re
from pathlib import Path

import numpy as np
import pytest

from sftctl.data.prepare.prepare import prepare_files
from sftctl.report import answers, sections
from sftctl.report.dataset import data_section, open_dataset
from sftctl.report.downsample import smoothed
from sftctl.report.page import report_page
from sftctl.report.record import read_run
from sftctl.runs.answers import Answered, Question, write_answers
from sftctl.train.run import run_training
from tests.toys.records import sample, toy_run, write_lines
from tests.toys.runs import toy_config


def cells(page: str) -> list[list[str]]:
    """The text of each row of the tables in a piece of HTML."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<td[^>]*>(?:<span[^>]*>)?([^<]*)", row) for row in rows][1:]


def test_checkpoints_are_listed_oldest_first_with_the_validation_loss_of_their_own_step(
    tmp_path: Path,
) -> None:
    config = toy_config(
        tmp_path, train__max_steps=3, data__val_fraction=0.3, train__eval_interval=2
    )
    record = read_run(run_training(config).run_dir)
    losses = {step: f"{loss:.4g}" for step, loss in record.validation()}
    assert losses.keys() == {0, 2, 3}
    rows = cells(sections.checkpoints(record).text)
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("step-00000001", "0", "-", "complete"),
        ("step-00000002", "0", losses[2], "complete"),
        ("step-00000003", "0", losses[3], "complete"),
    ]
    assert {row[3] for row in rows} == {"2.8 MB"}


def test_an_evaluation_at_the_step_of_a_resume_counts_and_later_ones_do_not(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 8)
    events = [("evaluation", 2), ("evaluation", 4), ("evaluation", 5), ("resumed", 4)]
    write_lines(
        run / "events.jsonl",
        [{"event": name, "step": step, "validation_loss": step / 2} for name, step in events],
    )
    assert read_run(run).validation() == [(2, 1.0), (4, 2.0)]


def test_of_many_events_the_last_500_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    warnings = [{"event": "warning", "step": step, "error": "full"} for step in range(1, 504)]
    write_lines(run / "events.jsonl", [sample(0, "Hi"), *warnings])
    page = sections.events(read_run(run)).text
    assert [row[1] for row in cells(page)] == [str(step) for step in range(4, 504)]
    assert ">3 earlier events are in events.jsonl<" in page
    write_lines(run / "events.jsonl", warnings[3:])
    assert "earlier events" not in sections.events(read_run(run)).text


def test_events_are_sentences_and_unknown_ones_have_their_fields(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    saved = {"event": "saved", "step": 2, "path": "a/step-00000002", "num_bytes": 44_100_000}
    write_lines(
        run / "events.jsonl",
        [
            saved | {"seconds": 0.71},
            {"event": "saved", "step": 2, "path": "of another version"},
            {"event": "warning", "step": 2, "message": "look"},
            {"event": "new", "step": 2, "what": 1000},
            {"event": "finished", "step": 3},
        ],
    )
    assert [row[3] for row in cells(sections.events(read_run(run)).text)] == [
        "saved step-00000002 (44.1 MB in 0.7 s)",
        "path: of another version",
        "warning: look",
        "what: 1,000",
        "finished at step 3",
    ]


def test_the_loss_tile_is_a_mean_and_the_curve_is_smoothed_from_its_first_value() -> None:
    values = np.array([8.0, 6.0, np.nan, 4.0, 4.0, 4.0])
    smooth = smoothed(values)
    assert smooth[0] == 8 and np.isnan(smooth[2]) and smooth[5] == 4 and smooth[1] == 7


def test_the_next_commands_fit_how_the_run_ended(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    text = sections.go_on(read_run(run)).text
    assert f"sftctl chat {run}" in text and f"sftctl export {run}" in text
    write_lines(run / "events.jsonl", [{"event": "stopped", "step": 3}])
    assert f">sftctl resume {run}\n" in sections.go_on(read_run(run)).text


def test_of_many_answers_the_first_the_last_and_four_between_are_shown(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    write_lines(
        run / "events.jsonl", [sample(step, f"answer {step}") for step in range(0, 110, 10)]
    )
    page = answers.samples(read_run(run))
    assert page is not None
    assert re.findall(r"answer (\d+)", page.text) == ["0", "20", "40", "60", "80", "100"]
    write_lines(run / "events.jsonl", [sample(step, f"answer {step}") for step in range(6)])
    page = answers.samples(read_run(run))
    assert page is not None
    assert re.findall(r"answer (\d+)", page.text) == list("012345")


def test_settings_that_differ_from_the_default_are_highlighted(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3, train__epochs=7, train__seed=0, tracking__wandb=True)
    page = sections.configuration(read_run(run)).text
    assert re.findall(r'<div class="changed"><dt[^>]*>(\w+)<', page) == ["name", "epochs", "wandb"]
    assert ">on</dd>" in page


@pytest.mark.parametrize(("num_chars", "is_cut"), [(2900, False), (3100, True)])
def test_the_data_section_counts_targets_and_cuts_long_examples(
    tmp_path: Path, num_chars: int, is_cut: bool
) -> None:
    answers = ("x" * num_chars, "a", "a b c d e f", "a b c d e f g h i j k l")
    rows = [f'{{"instruction": "Hi", "output": "{answer}"}}\n' for answer in answers]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    config = toy_config(tmp_path, data__max_seq_len=8000)
    prepare_files([tmp_path / "rows.jsonl"], [], tmp_path / "store", config)
    run = toy_run(tmp_path, 3, data__path=str(tmp_path / "store"))
    data = open_dataset(read_run(run))
    assert data is not None
    page = data_section(data).text
    assert ('<span class="note"> …</span>' in page) == is_cut
    assert page.count('<pre class="example">') == 3
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))
    assert facts["duplicate rows"] == "0" and facts["rows kept"] == "4 (0 truncated)"
    assert facts["examples without target tokens"] == "0"
    assert facts["fewest target tokens"] == str(data.target_lengths.min())
    low, high = facts["90% of examples have"].split(" to ")
    assert float(low[:-1]) < float(facts["share per example"].split()[1][:-1]) < float(high[:-1])


def test_sets_metrics_and_answers_are_shown_and_what_chose_is_named(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 8)
    events = []
    for step in (0, 4, 8):
        sets = {name: {"loss": 2.0, "exact": step / 16} for name in ("ones", "<b>zeros")}
        found = {"event": "evaluation", "step": step, "validation_loss": 2.0, "sets": sets}
        best = {"best": 0.5, "best_step": 8, "goal": "exact of ones"} if step else {}
        events.append(found | best | {"metrics": {"exact": step / 16}})
        rows = [Question([{"role": "user", "content": f"<i>{n}"}], "wanted", []) for n in range(9)]
        written = [
            Answered("ones", n, row, f"answer {step}", {"exact": 1.0}) for n, row in enumerate(rows)
        ]
        write_answers(run, step, written)
    write_lines(run / "events.jsonl", events)
    with (run / "answers/step-00000008.jsonl").open("ab") as file:
        file.write(b'{"set": 3}\n[]\n{"step": "x", "number": 1}\n{"torn')
    record = read_run(run)
    assert record.summary()["metrics"] == {
        "exact": {name: [(0, 0.0), (4, 0.25), (8, 0.5)] for name in ("ones", "<b>zeros")}
    }
    page = report_page(record)
    assert ">exact of ones<" in page and ">the best, at step 8<" in page
    assert "best 2 at step" not in page  # the loss did not choose
    assert "Loss of each validation set" in page
    assert page.count("answer 4") == 8 and "step 4, exact 1<" in page
    assert "&lt;i&gt;0" in page and "&lt;b&gt;zeros" in page and "<i>" not in page
    assert "the first 8 rows of each set" in page
