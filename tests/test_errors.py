"""Every error that a user can meet says what to do next, in lines of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sftctl
from sftctl import errors
from sftctl.errors import CorruptCheckpoint, EngineDiffers, LayoutDiffers, NoCheckpoint, SftctlError

PACKAGE = Path(sftctl.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def kinds(root: type[SftctlError] = SftctlError) -> Iterator[type[SftctlError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


KINDS = {kind.__name__: kind for kind in kinds() if kind.__module__ == errors.__name__}


def raised(tree: ast.Module) -> Iterator[tuple[ast.Call, type[SftctlError]]]:
    """Every call that makes one of our errors, and every `refusals(path, OurError, ...)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = ast.unparse(node.args[1]) if is_refusals(node) else node.func.id
        if kind in KINDS:
            yield node, KINDS[kind]


def is_refusals(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("refusals", "read_refusals") and len(call.args) > 1


def has_hint(call: ast.Call, kind: type[SftctlError]) -> bool:
    first = 2 if is_refusals(call) else 1
    given = [*call.args[first:], *(word.value for word in call.keywords if word.arg == "hint")]
    return kind.advice is not None or any(ast.unparse(value) != "None" for value in given)


def test_every_error_has_a_hint() -> None:
    # These two never reach a user: the slower way is taken instead.
    found = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}"
        for path, tree in TREES.items()
        for call, kind in raised(tree)
        if kind not in (EngineDiffers, LayoutDiffers) and not has_hint(call, kind)
    ]
    assert found == []
    assert sum(1 for tree in TREES.values() for _ in raised(tree)) > 120


def test_no_message_holds_a_line_break() -> None:
    texts = [
        part.value
        for tree in TREES.values()
        for call, _ in raised(tree)
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    assert len(texts) > 200
    assert [text for text in texts if "\n" in text] == []


@pytest.mark.parametrize(
    ("source", "is_told"),
    [
        ("raise ConfigError('a')", False),
        ("raise ConfigError('a', None)", False),
        ("raise DataError('a', 'do b')", True),
        ("raise ConfigError('a', hint='do b')", True),
        ("raise CorruptCheckpoint('a')", True),
    ],
)
def test_the_test_sees_an_error_without_a_hint(source: str, is_told: bool) -> None:
    ((call, kind),) = raised(ast.parse(source))
    assert has_hint(call, kind) is is_told


def test_an_error_without_a_hint_of_its_own_has_that_of_its_kind() -> None:
    assert CorruptCheckpoint("a").hint == "put it back from a copy, or use another checkpoint"
    assert CorruptCheckpoint("a", "do b").hint == "do b"
    assert NoCheckpoint("a").hint == "`sftctl inspect-ckpt RUN_DIR` lists the checkpoints of a run"
