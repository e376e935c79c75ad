"""Names of roles become OpenAI's, in any spelling."""

import pytest

from sftctl.data.conversations.roles import ROLES, role_of
from sftctl.data.ledger import BadRow
from tests.toys.data import read


@pytest.mark.parametrize(
    ("name", "role"),
    [("Human", "user"), ("GPT", "assistant"), ("human_1", "user"), ("bot 2", "assistant")]
    + [("Assistant:", "assistant"), ("ipython", "tool"), (" SYSTEM ", "system"), ("user3", "user")],
)
def test_case_numbers_and_colons_do_not_matter(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize("name", ["robot", "", "1", "_1", "userx", "the user", None, 3, ["user"]])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(BadRow) as caught:
        role_of(name)
    assert caught.value.reason == "bad_role"


@pytest.mark.parametrize("role_key", ["role", "from"])
@pytest.mark.parametrize("content_key", ["content", "value"])
@pytest.mark.parametrize("name", ROLES)
def test_every_role_is_read_under_either_key(role_key: str, content_key: str, name: str) -> None:
    row = {"messages": [{role_key: name, content_key: "x"}]}
    assert read(row).messages == ({"role": ROLES[name], "content": "x"},)
