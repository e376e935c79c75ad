"""Write an HTML page about runs, as one file that needs no network and no library."""

import time
from collections.abc import Sequence
from pathlib import Path

from sftctl import __version__
from sftctl.disk import refusals, replace_file
from sftctl.errors import ConfigError
from sftctl.report import answers, comparison, sections
from sftctl.report.dataset import data_section, open_dataset
from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord, read_run
from sftctl.report.wording import moment
from sftctl.tracking import status
from sftctl.words import counted, parameters_text

REPORT_NAME, COMPARISON_NAME = "report.html", "comparison.html"
_BEGIN = "<!doctype html>\n"
_HERE = Path(__file__).parent
_STATUS = {
    "finished": "finished",
    "stopped": "stopped and saved",
    "failed": "ended by an error: see the last event",
    "unfinished": "unfinished: still running, or killed",
}


def write_report(run_dir: Path, output: Path | None) -> tuple[Path, RunRecord]:
    """Write the page of a run, by default into the run directory. Returns its path and record."""
    path = run_dir / REPORT_NAME if output is None else output
    _refuse_other_files(path)
    status.doing(f"reading {run_dir}")
    record = read_run(run_dir)
    status.doing(f"writing {path}")
    with refusals(path, ConfigError, hint="choose another --output"):
        replace_file(path, report_page(record).encode("utf-8", "replace"))
    return path, record


def write_comparison(run_dirs: Sequence[Path], output: Path | None) -> tuple[Path, list[RunRecord]]:
    """Write one page about several runs, by default into the first run directory.

    Returns its path and the records of the runs.
    """
    path = run_dirs[0] / COMPARISON_NAME if output is None else output
    _refuse_other_files(path)
    status.doing(f"reading {counted(len(run_dirs), 'run')}")
    records = [read_run(run_dir) for run_dir in run_dirs]
    with refusals(path, ConfigError, hint="choose another --output"):
        replace_file(path, comparison_page(records).encode("utf-8", "replace"))
    return path, records


def comparison_page(records: Sequence[RunRecord]) -> str:
    """The HTML of a page about several runs."""
    names = comparison.names_of(records)
    parts: list[tuple[str, Html | None]] = [
        ("Runs", comparison.overview(records, names)),
        ("Curves", comparison.curves(records, names)),
        ("Differences", comparison.differences(records, names)),
    ]
    head = join(tag("p", "sftctl runs", class_="kicker"), tag("h1", " · ".join(names)))
    remarks = [
        f"{name}: {text}" for name, one in zip(names, records, strict=True) for text in one.remarks
    ]
    return _page(" · ".join(names), head, _remarks(remarks), parts)


def _refuse_other_files(path: Path) -> None:
    """Raise ConfigError if `path` exists and is not a report."""
    if not path.exists() and not path.is_symlink():
        return
    is_page = path.is_file() and not path.is_symlink()
    if not is_page or path.read_bytes()[: len(_BEGIN)] != _BEGIN.encode():
        raise ConfigError(
            f"{path}: exists already, and is not a report", hint="choose another --output"
        )


def report_page(record: RunRecord) -> str:
    """The HTML of a page about one run."""
    data = open_dataset(record)
    parts: list[tuple[str, Html | None]] = [
        ("Loss", sections.losses(record)),
        ("Samples", answers.samples(record)),
        ("Answers", answers.judged(record)),
        ("Data", data_section(data) if data is not None else None),
        ("Machine", sections.machine(record)),
        ("Checkpoints", sections.checkpoints(record)),
        ("Next", sections.go_on(record)),
        ("Events", sections.events(record)),
        ("Configuration", sections.configuration(record) if record.config else None),
    ]
    name = record.path.absolute().name
    top = join(_remarks(record.remarks), sections.cards(record))
    return _page(name, _head(record, name), top, parts)


def _page(
    title: str, head: Html, top: Html | None, parts: Sequence[tuple[str, Html | None]]
) -> str:
    """The HTML of a page. Parts that are None are left out."""
    shown = [(name, part) for name, part in parts if part is not None]
    links = [tag("a", name, href=f"#{name.lower()}") for name, _ in shown]
    body = tag(
        "body",
        tag("header", head, tag("nav", *links, aria_label="parts of the page")),
        tag(
            "main",
            top,
            *(
                tag("section", tag("h2", name), part, id=name.lower(), class_="part")
                for name, part in shown
            ),
        ),
        tag("footer", f"sftctl {__version__}, {time.strftime('%Y-%m-%d %H:%M')}"),
        _script(),
    )
    return _BEGIN + tag("html", _metadata(title), body, lang="en").text + "\n"


def _metadata(name: str) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · sftctl"),
        tag("style", Html((_HERE / "page.css").read_text(encoding="utf-8"))),
    )


def _head(record: RunRecord, name: str) -> Html:
    model = record.config.get("model", {}).get("name")
    starts = [event for event in record.events if event["event"] == "started"]
    counts = [(e.get("num_parameters"), e.get("num_trained")) for e in starts]
    about = [Path(str(model)).name] if model is not None else []
    if counts and isinstance(number := counts[-1][0], int):
        trained = counts[-1][1]  # None in runs of older versions, which trained all parameters
        about += [parameters_text(number, trained if isinstance(trained, int) else number)]
    about += [moment(record.facts.get("created"))]
    return join(
        tag("p", "sftctl run", class_="kicker"),
        tag("h1", name),
        tag("p", tag("span", _STATUS[record.status], class_=f"pill {record.status}")),
        tag("p", " · ".join(about), class_="about"),
    )


def _remarks(remarks: Sequence[str]) -> Html | None:
    if not remarks:
        return None
    lines = [tag("li", remark) for remark in remarks]
    return tag("aside", tag("ul", *lines), class_="remarks", aria_label="remarks")


def _script() -> Html:
    return tag("script", Html((_HERE / "page.js").read_text(encoding="utf-8")))
