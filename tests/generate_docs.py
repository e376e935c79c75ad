"""Write docs/config.md and docs/cli.md from the program: `python -m tests.generate_docs`."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import typer.main

from sftctl.cli.app import app
from sftctl.config.keys import documentation
from sftctl.config.load import toml_value
from sftctl.config.schema import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
CONFIG_PAGE, CLI_PAGE = DOCS / "config.md", DOCS / "cli.md"
CLI_HEAD = """# The command line

What `sftctl` and each of its commands print for `--help`. `sftctl --install-completion` teaches
your shell to complete commands and flags; `sftctl --version` prints the version. Exit codes: 0
done, 1 a bug of ours, 2 usage or configuration, 3 data, 4 checkpoint, 5 training diverged, 75
stopped by a signal after saving. Every report command takes `--json`: one document on stdout.

This page is made by `python -m tests.generate_docs`.
"""
HEAD = """# Configuration

A run is configured by a TOML file, by flags, or both. A flag beats `--set section.key=value`, which
beats the file, which beats the default. An unknown key or a wrong type stops the command before
anything is loaded, with every problem at once. `sftctl train --print-config` prints a commented
file with the values as they would be, `--dry-run` the value of every key and where it is from; the
resolved configuration of a run is its `config.toml`, and `sftctl train config.toml` runs it anew.

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


def cli_page() -> str:
    """The help of every command."""
    parts = [CLI_HEAD]
    for name in ("", *typer.main.get_command(app).commands):  # type: ignore[attr-defined]
        command = ["sftctl", name] if name else ["sftctl"]
        parts.append(f"## {' '.join(command)}\n\n```\n{_help(command[1:])}\n```\n")
    return "\n".join(parts)


def _help(command: list[str]) -> str:
    plain = {"TERMINAL_WIDTH": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf8"}
    done = subprocess.run(
        [sys.executable, "-m", "sftctl", *command, "--help"],
        env=os.environ | plain,
        capture_output=True,
        check=True,
        timeout=60,
    )
    lines = [line.rstrip() for line in done.stdout.decode().splitlines()]
    return "\n".join(lines).strip("\n")


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    CONFIG_PAGE.write_text(config_page(), encoding="utf-8")
