"""The ends of array elements are found for any contents and any chunks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.data.reading.json_array import ArrayScanner

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('"\\,[]{} \nab', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\x'), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(ANY_JSON, max_size=6), st.sampled_from([None, 0, 1]), st.integers(1, 40))
def test_elements_are_found_for_any_contents_and_any_chunk_size(
    values: list[Any], indent: int | None, size: int
) -> None:
    text = json.dumps(values, indent=indent).encode()[1:]
    scanner, ends = ArrayScanner(), []
    for start in range(0, len(text), size):
        if not scanner.is_closed:
            ends += [start + end for end in scanner.ends(text[start : start + size])]
    assert scanner.is_closed
    assert ends[-1] == len(text) - 1
    starts = [0, *(end + 1 for end in ends)]
    elements = [text[a:b] for a, b in zip(starts, ends, strict=False)]
    assert [json.loads(item) for item in elements if item.strip()] == values


@pytest.mark.parametrize("size", [*range(1, 50), 1000])
def test_long_runs_of_backslashes_are_counted_across_chunks(size: int) -> None:
    values = ["\\" * count + '",' for count in (40, 41, 17, 1)]
    text = json.dumps(values).encode()[1:]
    scanner, ends = ArrayScanner(), []
    for start in range(0, len(text), size):
        ends += [start + end for end in scanner.ends(text[start : start + size])]
    assert [text[end : end + 1] for end in ends] == [b",", b",", b",", b"]"]
    assert (scanner.is_closed, ends[-1]) == (True, len(text) - 1)
