"""Names that people give in place of a model's folder, name or configuration."""

import re
from pathlib import Path

from sftctl.errors import ConfigError
from sftctl.words import printable

_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_SAVED_AS = re.compile(r"config(\.json\.\w+| ?\(\d+\)\.json|\.json)", re.IGNORECASE)


def refuse_address(name: str) -> None:
    """ConfigError for an address. The page of a model on the hub has its name."""
    if "://" not in name and not name.startswith(("huggingface.co/", "hf.co/")):
        return
    found = _PAGE.match(name)
    hint = f"give its name on the hub: {found[1]}" if found else "download it, and name its folder"
    raise ConfigError(f"{printable(name)}: an address, not a name on the hub", hint)


def renamed_config(folder: Path) -> str | None:
    """A hint with a config.json that a browser or an editor gave another name; None if there is
    none."""
    named = sorted(one.name for one in folder.iterdir() if _SAVED_AS.fullmatch(one.name))
    return f"is {named[0]} its config.json? Rename it then" if named else None
