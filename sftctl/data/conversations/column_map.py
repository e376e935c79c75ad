"""Parse the setting `data.columns`, which maps columns of the data to sftctl's keys."""

from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.shapes import ROW_KEYS
from sftctl.errors import ConfigError


def parse_columns(text: str | None) -> Columns:
    """("prompt=q,completion=a") -> (("prompt", "q"), ("completion", "a")).

    Raises ConfigError if the text has another form, or if a key on the left is unknown or repeated.
    """
    if text is None:
        return ()
    pairs = [part.partition("=") for part in text.split(",")]
    columns = tuple((ours.strip(), theirs.strip()) for ours, _, theirs in pairs)
    hint = "as in --columns prompt=question,completion=answer"
    if not all(ours and theirs for ours, theirs in columns):
        raise ConfigError(f"data.columns: {text}: expected KEY=COLUMN,…", hint)
    keys = [ours for ours, _ in columns]
    for key in keys:
        if key not in ROW_KEYS:
            known = ", ".join(sorted(ROW_KEYS))
            raise ConfigError(f"data.columns: {key} is not a key of a row: {known}", hint)
    if len(set(keys)) < len(keys):
        raise ConfigError(f"data.columns: {text}: a key is named twice", hint)
    return columns
