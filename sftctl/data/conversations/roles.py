"""The table of role names that data sets use, with OpenAI's role for each name."""

import re
from typing import Literal

from sftctl.data.ledger import BadRow

Role = Literal["system", "user", "assistant", "tool"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool_calls": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_result": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
}
"""Keys are in lower case. Names in data may also have upper case, a number (`human_1`) or a colon.
"""

_CALLING = frozenset({"function_call", "tool_call", "tool_calls"})
PLAIN_ROLES = {name: role for name, role in ROLES.items() if name not in _CALLING}
"""All role names except the names of tool calls."""

_NUMBER = re.compile(r"[ _-]?\d+$")


def role_of(name: object) -> Role:
    """OpenAI's role for a name. Raises BadRow if the name is unknown."""
    if isinstance(name, str) and (role := ROLES.get(name) or ROLES.get(_plain(name))):
        return role
    known = ", ".join(ROLES)
    raise BadRow("bad_role", f"unknown role {name!r:.60}", f"known roles: {known}")


def is_calling(name: str) -> bool:
    """Whether the content of a message with this role is a tool call, as JSON text."""
    return name in _CALLING or _plain(name) in _CALLING


def _plain(name: str) -> str:
    return _NUMBER.sub("", name.strip().rstrip(":").lower())
