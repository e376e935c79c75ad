"""HTML is built from elements; all other text is escaped."""

from sftctl.report.markup import Html, join, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    made = tag("p", "a < b & 'c'", tag("b", "</b>"), Html("<i></i>"), None)
    assert made.text == "<p>a &lt; b &amp; &#x27;c&#x27;<b>&lt;/b&gt;</b><i></i></p>"


def test_attributes_are_escaped_named_and_left_out() -> None:
    made = tag("a", "x", class_='"><script>', aria_label="a&b", hidden=True, title=None)
    assert made.text == ('<a class="&quot;&gt;&lt;script&gt;" aria-label="a&amp;b" hidden>x</a>')


def test_an_element_without_content_closes_itself() -> None:
    assert join(tag("meta", charset="utf-8"), tag("path", d="M0 0")).text == (
        '<meta charset="utf-8"/><path d="M0 0"/>'
    )
