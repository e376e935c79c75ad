"""The option of a chat template that changes the thinking block of its prompts, for a hint."""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import product

from sftctl.data.masks.thinking import OpenedBlock, opened_block
from sftctl.errors import SftctlError
from sftctl.model.tokenizer.template_options import options_of
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_QUESTION = {"role": "user", "content": "?"}


def option_for(
    tokenizer: ChatTokenizer, is_wanted: Callable[[OpenedBlock | None], bool]
) -> str | None:
    """`name=value` with which a prompt ends with a wanted block, or no block; None: none does."""
    found = _blocks(tokenizer)
    return next((option for option, block in found if is_wanted(block)), None)


@lru_cache(maxsize=8)
def _blocks(tokenizer: ChatTokenizer) -> list[tuple[str, OpenedBlock | None]]:
    """The block that a prompt ends with, by the option that is set."""
    found = []
    read = {name for text in tokenizer.templates.values() for name in options_of(text) or ()}
    names = sorted(name for name in read if "think" in name or "reason" in name)
    for name, value in product(names, (True, False)):
        with suppress(SftctlError):
            prompt = tokenizer.with_options({name: value}).render([_QUESTION], None, True)
            found.append((f"{name}={str(value).lower()}", opened_block(prompt)))
    return found
