"""A report page taken apart."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from sftctl.report.page import write_report


@dataclass
class Parsed(HTMLParser):
    """The elements and words of a page; every element must be closed in its order."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open_: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open_.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str, class_: str | None = None) -> int:
        return sum(
            name == tag and (class_ is None or class_ in (attributes.get("class") or "").split())
            for name, attributes in self.elements
        )

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def page_of(run: Path) -> Parsed:
    """The report of a run, parsed."""
    path, _ = write_report(run, None)
    parsed = Parsed()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    assert parsed.open_ == []
    return parsed
