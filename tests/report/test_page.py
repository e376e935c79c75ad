"""Every run has a page, also a damaged one, and no text of a run becomes markup."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.data.prepare.prepare import prepare_files
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.jsonio import dump_line, read_lines
from sftctl.report.page import write_report
from sftctl.report.record import read_run
from sftctl.train.run import run_training
from tests.toys.commands import Result
from tests.toys.html import page_of
from tests.toys.records import metrics, sample, toy_run, write_lines
from tests.toys.runs import toy_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run on a prepared store, with validation."""
    folder = tmp_path_factory.mktemp("trained")
    config = toy_config(folder, data__val_fraction=0.3, train__eval_interval=4)
    return run_training(config).run_dir


def test_a_finished_run_has_all_parts(trained: Path) -> None:
    page = page_of(trained)
    assert page.count("figure") == 9  # seven curves, two histograms
    assert page.count("span", "finished") >= 1
    for title in ("Loss", "Data", "Machine", "Checkpoints", "Next", "Events", "What is trained"):
        assert title in page.words
    assert page.count("mark") >= 3
    assert page.count("aside") == 0
    assert read_run(trained).remarks == []


def test_the_head_says_how_many_parameters_are_trained_if_not_all(
    trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    events = [*read_lines(run / "events.jsonl")]
    number = events[0]["num_parameters"]
    for trains, shown in ((number, f"{number:,} parameters"), (4096, "of which 4,096 are trained")):
        lines = [dump_line({**event, "num_trained": trains}) for event in events]
        (run / "events.jsonl").write_bytes(b"".join(lines))
        about = next(word for word in page_of(run).words if " parameters" in word)
        assert f"{number:,} parameters" in about and shown in about
        assert ("are trained" in about) is (trains != number)


def test_the_page_needs_no_other_file_and_names_what_it_draws(trained: Path) -> None:
    page = page_of(trained)
    assert not {"src", "href"} & {
        key
        for name, attributes in page.elements
        for key, value in attributes.items()
        if not str(value).startswith("#")
    }
    assert page.count("script") == page.count("style") == 1
    for word in ("http:", "https:", "@import", "url("):
        assert word not in page.text
    pictures = [attributes for name, attributes in page.elements if name == "svg"]
    assert len(pictures) == page.count("desc") == 10
    assert all(attributes["role"] == "img" for attributes in pictures)
    assert dict(page.elements)["html"]["lang"] == "en"


def test_a_long_run_is_downsampled_and_its_resume_is_marked(
    tmp_path: Path,
) -> None:
    run = toy_run(tmp_path, 3000)
    page = page_of(run)
    assert page.count("path", "mark") == 8  # a resume, in every curve; the loss has two scales
    assert "line: mean of 10 steps, band: lowest to highest" in page.words
    assert (run / "report.html").stat().st_size < 400_000
    losses = read_run(run).validation()
    assert max(loss for _, loss in losses) < 9.0 and losses[-1][0] == 3000
    assert {"user: the capital?", "1500 is a reply", "It is Paris."} <= set(page.words)


HOSTILE = "</style></title></script>\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    run = toy_run(tmp_path, 5, name, tracking__wandb_project=HOSTILE, data__path=HOSTILE)
    told = {"step": 5, "time": HOSTILE, "message": HOSTILE, HOSTILE: HOSTILE}
    events = [{"event": HOSTILE} | told, {"event": "warning"} | told, {"event": "resumed"} | told]
    with (run / "events.jsonl").open("ab") as file:
        for event in [*events, sample(5, HOSTILE) | {"prompt": HOSTILE, "reference": HOSTILE}]:
            file.write(dump_line(event))
    (run / "checkpoints" / "step-00000005").mkdir(parents=True)
    page = page_of(run)
    assert (page.count("script"), page.count("img"), page.count("style")) == (1, 0, 1)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.words.count(HOSTILE) >= 5 and name in page.words


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_only_a_report_is_overwritten(kind: str, tmp_path: Path) -> None:
    run = toy_run(tmp_path, 4)
    there = tmp_path / "there"
    if kind == "file":
        there.write_text("mine")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(write_report(run, None)[0])
    with pytest.raises(ConfigError) as caught:
        write_report(run, there)
    assert caught.value.message == f"{there}: exists already, and is not a report"
    assert caught.value.hint == "choose another --output"
    assert kind != "file" or there.read_text() == "mine"


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 4)
    assert write_report(run, None)[0] == write_report(run, None)[0]


def test_a_run_that_has_not_trained_yet_has_a_page(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 4)
    (run / "metrics.jsonl").unlink()
    (run / "events.jsonl").unlink()
    page = page_of(run)
    assert page.count("p", "empty") == 7
    assert page.count("span", "unfinished") == 1
    assert "metrics.jsonl: No such file or directory" in page.words


def test_a_run_without_validation_has_one_loss_curve(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 4)
    write_lines(run / "events.jsonl", [{"event": "started", "step": 0, "total_steps": 9}])
    page = page_of(run)
    assert "validation" not in page.words and page.count("div", "card") == 5
    assert page.count("span", "unfinished") == 1
    assert "of 9" in page.words


def test_a_run_of_one_step_has_a_dot(tmp_path: Path) -> None:
    assert page_of(toy_run(tmp_path, 1)).count("path", "dot") >= 7


def test_damaged_lines_are_left_out_with_a_remark(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 9)
    lines = [dump_line(metrics(step)) for step in range(1, 10)]
    lines[2:4] = [b"\xff{half a line\n", b"[1]\n"]
    lines[6] = dump_line(metrics(7) | {"loss": None, "grad_norm": "high"})
    lines.append(dump_line(metrics(3)))
    (run / "metrics.jsonl").write_bytes(b"".join(lines) + b'{"step": 10, "lo')
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "evaluation", "step": 9}\n{"event": 3}\nno\n')
    record = read_run(run)
    assert record.steps.tolist() == [1, 2, 5, 6, 7, 8, 9]
    assert record.remarks == [
        "metrics.jsonl:3: not a JSON object; 2 such lines left out",
        "metrics.jsonl: 1 line left out: the step does not increase",
        "metrics.jsonl: 2 of 9 steps missing",
        "events.jsonl:18: not a JSON object; 1 such line left out",
    ]
    page = page_of(run)
    assert set(record.remarks) <= set(page.words)


def test_a_configuration_of_another_version_is_a_remark(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    (run / "config.toml").write_text("[train]\nwarp = 9\n")
    page = page_of(run)
    assert any("unknown key train.warp" in word for word in page.words)
    assert "Configuration" not in page.words


def test_a_damaged_checkpoint_is_shown_with_its_problem(trained: Path, tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    folder = run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert any("manifest.json.sha256: missing" in word for word in page_of(run).words)


def test_a_store_that_was_changed_since_is_not_shown(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 3)
    config = toy_config(tmp_path)
    prepare_files([Path(str(config.data.path))], [], tmp_path / "store", config)
    store = str(tmp_path / "store")
    started = {"event": "started", "step": 0, "store": store, "data_fingerprint": "another"}
    write_lines(run / "events.jsonl", [started])
    assert any("was trained on another store" in word for word in page_of(run).words)
    write_lines(run / "events.jsonl", [started | {"data_fingerprint": None}])
    assert "What is trained" in page_of(run).words


def test_the_file_can_be_named_and_the_numbers_printed_as_json(
    sftctl: Callable[..., Result], tmp_path: Path
) -> None:
    run = toy_run(tmp_path, 6)
    assert sftctl("report", run).stdout.endswith(f"wrote {run}/report.html\n")
    told = json.loads(sftctl("report", run, "--output", "here.html", "--json").stdout)
    assert (tmp_path / "here.html").read_text().startswith("<!doctype html>")
    assert (told["report"], told["status"], told["step"]) == ("here.html", "finished", 6)


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="nowhere: no such run directory"):
        write_report(tmp_path / "nowhere", None)
    with pytest.raises(NoCheckpoint, match="not a run directory"):
        write_report(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 2)
    output = tmp_path / "no" / "x.html"
    with pytest.raises(ConfigError, match="can't be written") as caught:
        write_report(run, output)
    assert caught.value.hint == "choose another --output"
