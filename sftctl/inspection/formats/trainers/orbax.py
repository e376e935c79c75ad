"""Orbax, the checkpoints of JAX: a folder of steps, one step, or one item of a step."""

import re
from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.files import OTHER_TOOL, Files, steps_in
from sftctl.inspection.inspection import Inspection
from sftctl.inspection.pickles.values import table
from sftctl.words import counted, in_shell, printable

_STEP_FILE, _TREE_FILE, _DATABASE = "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"
_MARKS = (_STEP_FILE, _DATABASE)
_STEP = re.compile(r"(?:.*[_-])?(\d{1,18})")
_UNFINISHED = re.compile(r"(.+)\.orbax-checkpoint-tmp(-\d+)?")
_OF_A_PROCESS = re.compile(r"ocdbt\.process_")
_MOST_NAMED = 5
_RESTORE = "import orbax.checkpoint as o, sys; print(o.PyTreeCheckpointer().restore(sys.argv[1]))"


def is_orbax(path: Path) -> bool:
    """Whether this is a step, or an item of a step, also if its save was interrupted."""
    return path.is_dir() and (_is_marked(path) or bool(_items(path) or _parts(path)))


def is_orbax_output(path: Path) -> bool:
    """Whether this is a folder of steps."""
    return path.is_dir() and not _is_marked(path) and bool(_steps(path))


def _is_marked(folder: Path) -> bool:
    """Whether Orbax wrote this folder, by its files.

    A `_METADATA` alone is not enough: other tools write one too, with other content.
    """
    is_tree = (folder / _TREE_FILE).is_file() and (folder / "array_metadatas").is_dir()
    return is_tree or any((folder / name).is_file() for name in _MARKS)


def _items(step: Path) -> list[Path]:
    """The folders in a step that hold arrays, such as `default` and `params`."""
    inside = (one for one in step.iterdir() if one.is_dir() and not _OF_A_PROCESS.match(one.name))
    return sorted(one for one in inside if _is_marked(one) or _is_zarr(one))


def _is_zarr(folder: Path) -> bool:
    """Whether each array has a folder of its own, as in older versions of Orbax."""
    return (folder / "checkpoint").is_file() and bool(_parts(folder))


def _parts(folder: Path) -> list[Path]:
    """The folders that hold one array each."""
    return sorted(one.parent for one in folder.glob("*/.zarray"))


def _steps(output: Path) -> list[Path]:
    """The finished steps in a folder, the largest last."""
    return steps_in(output, _STEP, is_orbax)


def inspect_orbax_output(path: Path) -> Inspection:
    """The newest step in a folder, with all steps in `checkpoints`."""
    checkpoints = [inspect_orbax(one) for one in _steps(path)]
    return replace(checkpoints[-1], checkpoints=checkpoints)


def inspect_orbax(path: Path) -> Inspection:
    """One step: its items, and whether their saves were finished. No array is read."""
    files = Files.of(path, ("*", "*/*", "*/*/*"))
    problems = [f"{path.name}: was not finished"] if _UNFINISHED.fullmatch(path.name) else []
    unfinished = sorted(one.name for one in path.iterdir() if _UNFINISHED.fullmatch(one.name))
    problems += [f"{name}: was not finished" for name in unfinished]
    items = [path] if _is_item(path) else _items(path)
    if not items and not problems:
        problems.append("default: missing; no item with arrays is here")
    names: list[str] = []
    for item in items:
        before = "" if item == path else f"{item.name}/"
        listed = table(files.read_json(f"{before}{_TREE_FILE}").get("tree_metadata"))
        names += [f"{before}{_plain(name)}" for name in listed]
        problems += [f"{before}{problem}" for problem in _problems_of(item)]
    files.problems.extend(problems)
    step = _STEP.fullmatch(path.absolute().name)
    typed = in_shell(items[0].absolute() if items else path)
    advice = f"`python -c '{_RESTORE}' {typed}` shows its arrays"
    return replace(
        files.inspection("Orbax checkpoint (JAX)", {}, f"{advice}; this needs Orbax and JAX"),
        facts={"step": int(step[1]) if step else None},
        step_counts="in the folder's name" if step else None,
        obstacles=[OTHER_TOOL],
        notes=[_contents(names)] if names else [],
    )


def _is_item(path: Path) -> bool:
    return (path / _DATABASE).is_file() or (path / _TREE_FILE).is_file() or bool(_parts(path))


def _problems_of(item: Path) -> list[str]:
    """A problem for a missing file of an item; else []."""
    if _parts(item):
        return []
    if not (item / _DATABASE).is_file():
        return [f"{_DATABASE}: missing"]
    if not any(one.is_file() for one in (*item.glob("d/*"), *item.glob("ocdbt.process_*/d/*"))):
        return ["d: it has no file with arrays"]
    return [] if (item / _TREE_FILE).is_file() else [f"{_TREE_FILE}: missing"]


def _plain(name: str) -> str:
    """The name of an array: `('params', 'w')` -> `params.w`."""
    return ".".join(re.findall(r"'([^']*)'", name)) or name


def _contents(names: list[str]) -> str:
    """The number of arrays, and the names of the first five."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{counted(len(names), 'array')}: {printable(', '.join(names[:_MOST_NAMED]))}{more}"
