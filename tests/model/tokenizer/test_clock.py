"""A chat template with a clock writes one recorded day."""

import time
from datetime import date

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError
from sftctl.model.tokenizer.clock import with_frozen_clock
from tests.toys.data import CHATML, load

DAY = date(2026, 11, 1)


@pytest.mark.parametrize(
    ("template", "frozen"),
    [
        ("{{ strftime_now('%d %b %Y') }}", '{{ "01 Nov 2026" }}'),
        ('{%- set d = strftime_now( "%Y-%m-%d" ) %}', '{%- set d = "2026-11-01" %}'),
        ("{% if strftime_now is defined %}{{ strftime_now(format='%B') }}{% endif %}",
         '{% if strftime_now is defined %}{{ "November" }}{% endif %}'),
        ("{{ messages }}", "{{ messages }}"),
        ("{# strftime_now(x) #}", "{# strftime_now(x) #}"),
    ],
)  # fmt: skip
def test_calls_of_the_clock_become_the_day(template: str, frozen: str) -> None:
    assert with_frozen_clock(template, DAY) == frozen


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    ("format", "written"),
    [("%s", "1793491200"), ("%-s %%s", "1793491200 %s"), ("%H:%M %Z%z", "00:00 "), ("%c", None)],
)
def test_the_time_zone_of_the_machine_does_not_matter(
    zone: str, format: str, written: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        frozen = with_frozen_clock(f"{{{{ strftime_now('{format}') }}}}", DAY)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert frozen == f'{{{{ "{"Sun Nov  1 00:00:00 2026" if written is None else written}" }}}}'


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now(messages[0].content) }}",
        "{{ strftime_now('%d ' + '%b') }}",
        "{{ strftime_now('%d \\' %b') }}",
        "{% set now = strftime_now %}{{ now('%Y') }}",
    ],
)
def test_a_clock_that_cannot_be_frozen_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="writes the time in a format that it computes"):
        with_frozen_clock(template, DAY)


def test_a_dated_tokenizer_writes_its_day_and_keeps_it() -> None:
    template = "{{ strftime_now('%Y-%m-%d') }} " + CHATML
    tokenizer = load(SAMPLE_TOKENIZER, template)
    dated = tokenizer.with_date("2026-11-01")
    message = [{"role": "user", "content": "Hi"}]
    assert dated.render(message).startswith("2026-11-01 ")
    assert dated.with_engine("auto").with_date(None).date == DAY
    assert tokenizer.with_date(None).date == date.today()
    assert load(SAMPLE_TOKENIZER, CHATML).with_date("2026-11-01").date is None


def test_a_byte_order_mark_in_a_template_is_not_rendered() -> None:
    assert (
        load(SAMPLE_TOKENIZER, "\ufeff" + CHATML)
        .render([{"role": "user", "content": "Hi"}])
        .startswith("<|im_start|>")
    )
