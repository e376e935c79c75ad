"""The commands of the documentation, as a reader would type them."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
README = REPOSITORY / "README.md"
DOCS_FOLDER = REPOSITORY / "docs"
DOCS = sorted(DOCS_FOLDER.rglob("*.md"))
PAGES = [README, *DOCS]
OUR_PROGRAM = r"(?:\w+=\S+ )*(?:sftctl|make|python3?|torchrun|srun|zcat [^|]*\| sftctl) "
SHOWN_FILE = re.compile(r"# ([a-z_]+\.(?:py|jsonl))(?::.*)?\n")


@dataclass(frozen=True)
class Command:
    """A line to type, and whether the page shows that it ends in an error."""

    line: str
    is_refused: bool = False


def blocks_of(text: str) -> list[str]:
    """The texts between fences."""
    return re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[Command]:
    """All commands of a page, in order: lines of blocks, then those in a sentence's backquotes.

    In a block with `$ `, the commands follow these signs. In a block without, each line that begins
    with a program is a command. `sftctl train` alone in a sentence is only a name, not a call.
    """
    found = [command for block in blocks_of(text) for command in _in_block(block)]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [code for code in re.findall(r"`([^`\n]+)`", sentences) if _is_call(code)]
    return found + [Command(_to_type(code)) for code in inline]


def _in_block(block: str) -> list[Command]:
    block = re.sub(r"\\\n\s*", "", block)
    if not re.search(r"^\$ ", block, re.MULTILINE):
        lines = [line for line in block.splitlines() if re.match(OUR_PROGRAM, line)]
        return [Command(_to_type(line)) for line in lines]
    acts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    parts = [act.partition("\n") for act in acts]
    return [
        Command(_to_type(line), is_refused="\nerror: " in f"\n{screen}")
        for line, _, screen in parts
        if re.match(OUR_PROGRAM, line)
    ]


def _is_call(code: str) -> bool:
    of_other_tools = code.startswith("torchrun") and "sftctl" not in code
    is_name = re.fullmatch(r"sftctl [a-z][a-z-]*", code) is not None
    return re.match(OUR_PROGRAM, code) is not None and not of_other_tools and not is_name


def _to_type(line: str) -> str:
    """Without its comment; an ellipsis stands for whatever the reader adds."""
    return " ".join(line.partition(" #")[0].replace("…", " ").replace(" ... ", " ").split())


def write_shown_files(text: str, folder: Path) -> None:
    """A block that begins with a file's name in a comment is that file."""
    for block in blocks_of(text):
        if name := SHOWN_FILE.match(block):
            shown = block if name[1].endswith(".py") else block[name.end() :]
            (folder / name[1]).write_text(shown, encoding="utf-8")
