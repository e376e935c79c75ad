"""What the documentation says is what the program does."""

import re
from pathlib import Path
from typing import get_args

import pytest

from sftctl.cli.app import app
from sftctl.data.reasons import Reason
from tests.generate_docs import CONFIG_PAGE, config_page

DOCS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
README = Path(__file__).parents[1] / "README.md"


def test_the_configuration_page_is_the_schema() -> None:
    assert CONFIG_PAGE.read_text(encoding="utf-8") == config_page()


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_every_flag_in_the_docs_is_one_of_the_command(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"^(?:\$ )?sftctl ([a-z-]+)([^\n|>]*)$", text, re.MULTILINE):
        with pytest.raises(SystemExit):
            app([command, "--help"], prog_name="sftctl")
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert known, f"sftctl {command}: no such command"
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, f"sftctl {command}{rest}"


def test_every_reason_of_the_ledger_is_documented_and_no_other() -> None:
    page = next(page for page in DOCS if page.name == "data.md").read_text(encoding="utf-8")
    table = page.partition("## The ledger")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(get_args(Reason))
