"""An HTML page about a run, in one file that needs no network and no library."""

import time
from pathlib import Path

from sftctl import __version__
from sftctl.disk import refusals, replace_file
from sftctl.errors import ConfigError
from sftctl.report import sections
from sftctl.report.dataset import data_section, open_dataset
from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord, read_run
from sftctl.report.wording import moment

REPORT_NAME = "report.html"
_BEGIN = "<!doctype html>\n"
_HERE = Path(__file__).parent
_STATUS = {
    "finished": "finished",
    "stopped": "stopped and saved",
    "failed": "ended by an error: see the last event",
    "unfinished": "unfinished: still running, or killed",
}


def write_report(run_dir: Path, output: Path | None) -> tuple[Path, RunRecord]:
    """Write the page of a run, by default into the run; return its path and the run's record."""
    path = run_dir / REPORT_NAME if output is None else output
    _refuse_other_files(path)
    record = read_run(run_dir)
    with refusals(path, ConfigError, hint="choose another --output"):
        replace_file(path, report_page(record).encode("utf-8", "replace"))
    return path, record


def _refuse_other_files(path: Path) -> None:
    """Refuse to overwrite a file that is not such a page."""
    if not path.exists() and not path.is_symlink():
        return
    is_page = path.is_file() and not path.is_symlink()
    if not is_page or path.read_bytes()[: len(_BEGIN)] != _BEGIN.encode():
        raise ConfigError(
            f"{path}: exists already, and is not a report", hint="choose another --output"
        )


def report_page(record: RunRecord) -> str:
    """The page as text."""
    data = open_dataset(record)
    parts: list[tuple[str, Html | None]] = [
        ("Curves", sections.curves(record)),
        ("Samples", sections.samples(record)),
        ("Data", data_section(data) if data is not None else None),
        ("Checkpoints", sections.checkpoints(record)),
        ("Events", sections.events(record)),
        ("Configuration", sections.configuration(record) if record.config else None),
    ]
    shown = [(title, part) for title, part in parts if part is not None]
    links = [tag("a", title, href=f"#{title.lower()}") for title, _ in shown]
    name = record.path.absolute().name
    body = tag(
        "body",
        tag("header", _head(record, name), tag("nav", *links, aria_label="parts of the page")),
        tag(
            "main",
            _remarks(record),
            sections.cards(record),
            *(
                tag("section", tag("h2", title), part, id=title.lower(), class_="part")
                for title, part in shown
            ),
        ),
        tag("footer", f"sftctl {__version__}, {time.strftime('%Y-%m-%d %H:%M')}"),
        _script(),
    )
    return _BEGIN + tag("html", _metadata(name), body, lang="en").text + "\n"


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
    parameters = [e["num_parameters"] for e in starts if isinstance(e.get("num_parameters"), int)]
    about = [str(model)] if model is not None else []
    about += [f"{parameters[-1]:,} parameters"] if parameters else []
    about += [moment(record.facts.get("created"))]
    return join(
        tag("p", "sftctl run", class_="kicker"),
        tag("h1", name),
        tag("p", tag("span", _STATUS[record.status], class_=f"pill {record.status}")),
        tag("p", " · ".join(about), class_="about"),
    )


def _remarks(record: RunRecord) -> Html | None:
    if not record.remarks:
        return None
    lines = [tag("li", remark) for remark in record.remarks]
    return tag("aside", tag("ul", *lines), class_="remarks", aria_label="remarks")


def _script() -> Html:
    return tag("script", Html((_HERE / "page.js").read_text(encoding="utf-8")))
