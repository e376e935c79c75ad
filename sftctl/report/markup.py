"""HTML from safe parts: every value that is not `Html` is text and is escaped."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that `tag` made, or that comes from this package's own files."""

    text: str


Content = Html | str | None
Attribute = str | float | bool | None

_WITHOUT_END = ("meta", "line", "path", "rect", "input")


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Html:
    """An element; `class_` becomes `class`, `aria_label` becomes `aria-label`; None is left out."""
    words = [name, *(_attribute(key, value) for key, value in attributes.items() if value)]
    if name in _WITHOUT_END:
        return Html(f"<{' '.join(words)}/>")
    return Html(f"<{' '.join(words)}>{join(*content).text}</{name}>")


def join(*content: Content) -> Html:
    """The parts, joined in order."""
    return Html("".join(_text(one) for one in content if one is not None))


def _text(content: Html | str) -> str:
    return content.text if isinstance(content, Html) else escape(content)


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{escape(str(value))}"'
