"""Options of the template in a row: equal to those of the settings, unread, or refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.prepare.row_options import RowOptions
from tests.toys.data import read

READ = frozenset({"enable_thinking", "custom_instructions"})
ROW = {"prompt": "Hi", "completion": "Hello"}


@pytest.mark.parametrize(
    ("options", "given", "left"),
    [
        ({"enable_thinking": False, "custom_instructions": ""}, {"enable_thinking": False}, ()),
        ('{"enable_thinking": true}', {"enable_thinking": True}, ()),
        ({"xml_tools": [], "style": "x"}, {}, ("chat_template_kwargs.style",)),
        (None, {}, ()),
    ],
)
def test_options_of_the_settings_and_options_without_effect_are_kept(
    options: Any, given: dict[str, Any], left: tuple[str, ...]
) -> None:
    row = read(ROW | {"chat_template_kwargs": options})
    assert RowOptions(given, READ).checked(row).left == left


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"enable_thinking": False}, {}),
        ({"enable_thinking": False}, {"enable_thinking": True}),
        ({"custom_instructions": "Be kind."}, {"enable_thinking": True}),
    ],
)
def test_another_option_than_that_of_the_settings_is_refused(
    options: dict[str, Any], given: dict[str, Any]
) -> None:
    row = read(ROW | {"chat_template_kwargs": options})
    name = next(iter(options))
    with pytest.raises(BadRow, match=f"'chat_template_kwargs' asks for .* {name}=") as caught:
        RowOptions(given, READ).checked(row)
    assert f"--template-option {name}=" in str(caught.value.hint)


def test_options_that_are_not_an_object_are_refused() -> None:
    with pytest.raises(BadRow, match="'chat_template_kwargs' is not an object"):
        read(ROW | {"chat_template_kwargs": ["x"]})
