"""Write docs/config.md from the docstrings of the schema: `python -m tests.generate_docs`."""

from dataclasses import fields
from pathlib import Path

from sftctl.config.load import toml_value
from sftctl.config.schema import SECTIONS, documentation

CONFIG_PAGE = Path(__file__).parents[1] / "docs" / "config.md"
HEAD = """# Configuration

A run is configured by a TOML file, by flags, or both. A flag beats `--set section.key=value`, which
beats the file, which beats the default. An unknown key or a wrong type stops the command before
anything is loaded, with every problem at once. `sftctl train --print-config` prints a commented
file with the values as they would be; the resolved configuration of a run is its `config.toml`, and
`sftctl train config.toml` runs it anew.

This page is made from the docstrings in `sftctl/config/schema.py` by
`python -m tests.generate_docs`.
"""


def config_page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, cls in SECTIONS.items():
        parts.append(f"## [{name}]\n\n{cls.__doc__}\n\n| key | default | meaning |\n|---|---|---|")
        for item in fields(cls):
            default = "unset" if item.default is None else toml_value(item.default)
            parts.append(
                f"| `{item.name}` | `{default}` | {documentation()[f'{name}.{item.name}']} |"
            )
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    CONFIG_PAGE.write_text(config_page(), encoding="utf-8")
