"""Build HTML safely: every value that is not `Html` is escaped as text."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Html:
    """Markup from `tag`, or from files of this package. It is not escaped again."""

    text: str


Content = Html | str | None
Attribute = str | float | bool | None

_WITHOUT_END = ("meta", "line", "path", "rect", "input")


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Html:
    """An HTML element. `class_` becomes `class`, `aria_label` becomes `aria-label`.

    An attribute or content that is None is left out.
    """
    words = [name, *(_attribute(key, value) for key, value in attributes.items() if value)]
    if name in _WITHOUT_END:
        return Html(f"<{' '.join(words)}/>")
    return Html(f"<{' '.join(words)}>{join(*content).text}</{name}>")


def join(*content: Content) -> Html:
    """Join several parts. None is left out."""
    return Html("".join(_text(one) for one in content if one is not None))


def _text(content: Html | str) -> str:
    return content.text if isinstance(content, Html) else escape(content)


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{escape(str(value))}"'
