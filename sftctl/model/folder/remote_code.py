"""The Python files that a model folder wants to run. sftctl names them and never runs them."""

from collections.abc import Iterator
from pathlib import Path

from sftctl.jsonio import loads

_CONFIGURATIONS = ("config.json", "tokenizer_config.json")


def code_in(folder: Path) -> str | None:
    """The Python files that a model folder wants to run, and which files name them; or None."""
    found = {folder / name: _code_named_by(folder / name) for name in _CONFIGURATIONS}
    named_by = [str(file) for file, code in found.items() if code]
    code = sorted({one for named in found.values() for one in named})
    return f"{', '.join(code)}, named by auto_map in {' and '.join(named_by)}" if code else None


def _code_named_by(file: Path) -> list[str]:
    try:
        values = loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    named = values.get("auto_map") if isinstance(values, dict) else None
    return [_file(reference) for reference in _references(named)]


def _references(named: object) -> Iterator[str]:
    """All strings in an auto_map, also from lists and objects inside it."""
    if isinstance(named, str):
        yield named
    elif isinstance(named, (dict, list)):
        for inner in named.values() if isinstance(named, dict) else named:
            yield from _references(inner)


def _file(reference: str) -> str:
    """`modeling_x.XForCausalLM` -> `modeling_x.py`. `owner/name--…` adds `of owner/name`."""
    repository, _, code = reference.rpartition("--")
    file = f"{code.rpartition('.')[0] or code}.py"
    return f"{file} of {repository}" if repository else file
