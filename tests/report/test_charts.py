"""Numbers on the page, and the axes, ticks and labels of line charts and histograms."""

import re

import pytest

from sftctl.report.charts import Mark, Series, bar_chart, line_chart
from sftctl.report.downsample import Bucket
from sftctl.report.plot import Axis
from sftctl.report.wording import moment, number, percent, short_count


def labels(page: str, axis: str) -> list[str]:
    """The labels of the `x` or `y` axis."""
    found = re.search(rf'<div class="{axis}"[^>]*>(.*?)</div>', page)
    assert found is not None
    return re.findall(r">([^<]*)</span>", found[1])


def curve(*values: float) -> Series:
    """A curve with one bucket per step, from step 1 on."""
    steps = enumerate(values, 1)
    return Series("curve", [[Bucket(step, step, value, value, value) for step, value in steps]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (950, "950"), (999.4, "999"), (999.6, "1k"), (12_345, "12.3k"),
     (999_499, "999k"), (999_999, "1M"), (4_560_000, "4.56M"), (7.89e9, "7.89G")],
)  # fmt: skip
def test_a_large_number_has_three_digits_and_a_letter(value: float, expected: str) -> None:
    assert short_count(value) == expected


def test_small_shares_keep_their_digits() -> None:
    assert [percent(share) for share in (0, 0.0005, 0.123, 1)] == ["0%", "0.05%", "12.3%", "100%"]


@pytest.mark.parametrize("value", ["never", None, float("nan"), 1e300])
def test_what_is_not_a_time_is_a_dash(value: object) -> None:
    assert moment(value) == "-"


@pytest.mark.parametrize(
    ("largest", "from_zero", "is_log"),
    [(30, False, False), (31, False, True), (31, True, False)],
)
def test_a_scale_is_logarithmic_from_thirty_times_the_median_on(
    largest: float, from_zero: bool, is_log: bool
) -> None:
    axis = Axis.around([1, 1, 1, largest], from_zero)
    assert axis.is_log == is_log
    assert all(0 <= axis.share(value) <= 1 for value in (1, largest))
    assert axis.share(1) < axis.share(largest)


def test_a_scale_with_a_zero_is_never_logarithmic() -> None:
    assert not Axis.around([0, 1, 1, 1000], from_zero=False).is_log


def test_a_constant_curve_is_in_the_middle_of_its_scale() -> None:
    assert Axis.around([5, 5], from_zero=False).share(5) == pytest.approx(0.5)
    assert Axis.around([0, 0], from_zero=False).share(0) == pytest.approx(0.5)


def test_a_logarithmic_scale_has_ticks_at_powers_of_ten_and_says_so() -> None:
    chart = line_chart("Norm", [curve(1, 1, 1, 200)], [], number).text
    assert labels(chart, "y") == ["1", "10", "100"]
    assert ">log scale<" in chart


def test_only_resumes_between_the_first_and_the_last_step_are_marked() -> None:
    marks = [Mark(step, f"resumed at step {step}") for step in (0, 1, 2, 3, 4)]
    chart = line_chart("Loss", [curve(3, 2, 1)], marks, number).text
    assert re.findall(r"<title>resumed at step (\d)</title>", chart) == ["1", "2"]


def test_steps_are_labelled_with_whole_numbers() -> None:
    assert labels(line_chart("Loss", [curve(2, 1)], [], number).text, "x") == ["1", "2"]


def test_a_short_histogram_has_whole_numbers_as_ticks_and_an_edge_in_the_middle() -> None:
    chart = bar_chart("Length", [9, 1, 0], [0, 16, 32, 48], "{:,.0f}".format, "tokens").text
    assert labels(chart, "y") == ["0", "5"]
    assert labels(chart, "x") == ["0", "32", "48"]
    assert "<title>0 to 16 tokens: 9</title>" in chart
    assert "<desc>10 examples from 0 to 48 tokens</desc>" in chart


def test_a_chart_with_a_switch_is_drawn_on_both_scales() -> None:
    chart = line_chart("Loss", [curve(8, 4, 0.2)], [], number, has_switch=True).text
    assert chart.count("<svg") == 2 and chart.count('type="checkbox"') == 1
    assert line_chart("Loss", [curve(1, 0)], [], number, has_switch=True).text.count("<svg") == 1


def test_a_logarithmic_scale_of_less_than_two_decades_has_ticks_between_powers() -> None:
    assert Axis.logarithmic([0.2, 0.6]).ticks() == [0.2, 0.5]
    assert Axis.logarithmic([0.3, 8.0]).ticks() == [0.5, 1.0, 2.0, 5.0]


def test_points_have_a_thin_link_and_raw_values_are_pale() -> None:
    buckets = [Bucket(step, step, 1.0, 1.0, 1.0) for step in (1, 9)]
    points = Series("validation", [buckets], are_points=True)
    pale = Series("training", [buckets], is_pale=True)
    chart = line_chart("Loss", [points, pale], [], number).text
    assert chart.count('class="link"') == 1 and chart.count('class="line"') == 1
    assert 'class="s0 pale"' in chart
