"""What the documentation says is what the program does."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.cli.app import app
from sftctl.config.load import load_config
from sftctl.config.schema import DataConfig
from sftctl.data.ledger import Reason
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.fingerprint import store_fingerprint
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.generate_docs import CLI_PAGE, CONFIG_PAGE, cli_page, config_page
from tests.toys.docs.pages import DOCS, DOCS_FOLDER, PAGES

DESCRIBING = [page for page in PAGES if page != CLI_PAGE]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GENERATE = "run `python -m tests.generate_docs`"


def test_the_configuration_page_is_the_schema() -> None:
    assert CONFIG_PAGE.read_text(encoding="utf-8") == config_page(), GENERATE


def test_the_command_line_page_is_what_the_help_says() -> None:
    assert CLI_PAGE.read_text(encoding="utf-8") == cli_page(), GENERATE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_reason_of_the_ledger_is_documented_and_no_other() -> None:
    page = next(page for page in DOCS if page.name == "data.md").read_text(encoding="utf-8")
    table = page.partition("## The ledger")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(get_args(Reason))


def test_the_store_that_the_pages_show_is_that_of_the_bundled_sample() -> None:
    shown = {
        name
        for page in DOCS
        for name in re.findall(r"/stores/([0-9a-f]{32})", page.read_text(encoding="utf-8"))
    }
    train, validation = sample_files()
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    assert shown == {store_fingerprint([train], tokenizer, DataConfig(), [validation])[:32]}


@pytest.mark.parametrize(
    ("name", "heading", "manifest"),
    [
        ("data.md", "## The store", StoreManifest),
        ("checkpoint-format.md", "## manifest.json", CheckpointManifest),
    ],
)
def test_every_key_of_a_manifest_is_documented_and_no_other(
    name: str, heading: str, manifest: type[StoreManifest | CheckpointManifest]
) -> None:
    page = (DOCS_FOLDER / name).read_text(encoding="utf-8")
    table = page.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    keys = [
        key
        for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(keys) == sorted(field.name for field in fields(manifest))


@pytest.mark.parametrize("page", DESCRIBING, ids=lambda page: page.name)
def test_prose_is_wrapped_at_100_columns(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 100] == []


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\(([a-z/-]+\.md)\)", (DOCS_FOLDER / "index.md").read_text()))
    assert linked == {str(page.relative_to(DOCS_FOLDER)) for page in DOCS} - {"index.md"}


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """(command, arguments) of every `sftctl …` in code, in a block or inside a line."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in [line for block in blocks for line in block.splitlines()] + inline:
        code = line.partition(" #")[0]
        yield from re.findall(r"(?:^|\$ |-m |&& |; )sftctl ([a-z]+(?:-[a-z]+)*)([^|>]*)", code)


def flags_of(command: str) -> set[str]:
    return {
        flag
        for parameter in COMMANDS[command].params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}


@pytest.mark.parametrize("page", DESCRIBING, ids=lambda page: page.name)
def test_every_flag_in_the_docs_is_one_of_its_command(page: Path) -> None:
    for command, rest in commands_in(page.read_text(encoding="utf-8")):
        assert command in COMMANDS, f"sftctl {command}{rest}"
        strays = {*re.findall(r"(?<=\s)--[a-z-]+", rest)} - flags_of(command)
        assert not strays, f"sftctl {command}{rest}"


def test_a_wrong_flag_in_the_docs_would_be_seen() -> None:
    text = "```\n$ sftctl train --data x \\\n    --epoch 2   # not --this\n```\n"
    text += "and `sftctl resume --x`"
    assert [*commands_in(text)] == [
        ("train", " --data x      --epoch 2  "),
        ("resume", " --x"),
    ]
    assert "--epoch" not in flags_of("train") and "--data" in flags_of("train")


def our_flags(table: str) -> set[str]:
    """The flags in the second column of a page's tables."""
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {flag for row in rows for flag in re.findall(r"--[a-z-]+", row[1])}


def test_every_configuration_on_the_migrating_page_is_valid(tmp_path: Path) -> None:
    page = (DOCS_FOLDER / "migrating.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        (tmp_path / "run.toml").write_text(block)
        config = load_config(tmp_path / "run.toml")
        assert config.data.path and config.output_dir


def test_flags_on_the_migrating_page_exist() -> None:
    told = our_flags((DOCS_FOLDER / "migrating.md").read_text(encoding="utf-8"))
    assert len(told) > 20
    assert told <= flags_of("train") | flags_of("prepare-data")


def test_every_test_on_the_page_of_kinds_exists() -> None:
    text = (DOCS_FOLDER / "measured" / "kinds.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)` \|$", text, re.MULTILINE)
    assert f"These are {len(named)} kinds." in text
    tests = Path(__file__).parents[1]
    for file, name in named:
        pattern = rf"^(def {name}\(|{name}\b.* = )"
        assert re.search(pattern, (tests / file).read_text(), re.MULTILINE), f"{file}::{name}"
