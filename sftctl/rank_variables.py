"""The variables in which a launcher passes its rank to a process, and whether they agree."""

from collections.abc import Iterator, Mapping

OF_ALL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Each of several ranks needs all of these variables."""
VARIABLES = (*OF_ALL, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LAST_PORT = 65535
_MOST_DIGITS = 10


def is_number(text: str) -> bool:
    """Whether the text of a variable is a number >= 0."""
    return text.isdecimal() and text.isascii() and len(text) < _MOST_DIGITS


def contradiction(given: Mapping[str, str]) -> str | None:
    """The first contradiction between the variables, or the first that is not a number; or None.

    `given` has all of VARIABLES, with "" for a variable that is not set.
    """
    return next(_contradictions(given), None)


def unset(given: Mapping[str, str]) -> str:
    """The shell command that removes all variables by which this process is a rank."""
    names = [name for name in VARIABLES if given[name] or name in ("RANK", "WORLD_SIZE")]
    return f"unset {' '.join(names)}"


def _contradictions(given: Mapping[str, str]) -> Iterator[str]:
    for name, value in given.items():
        if name != "MASTER_ADDR" and value and not is_number(value):
            yield f"{name}={value:.40}, not a number"
            return  # the comparisons below need numbers
    rank, count = _number(given, "RANK", 0), _number(given, "WORLD_SIZE", 1)
    in_all = f"WORLD_SIZE={count}" if given["WORLD_SIZE"] else "no WORLD_SIZE"
    if not rank < count:
        yield f"RANK={rank} and {in_all}"
    missing = [name for name in OF_ALL if not given[name]]
    if count > 1 and missing:
        yield f"WORLD_SIZE={count}, but no {' and no '.join(missing)}"
    if count > 1 and given["MASTER_PORT"] and not 1 <= int(given["MASTER_PORT"]) <= _LAST_PORT:
        yield f"MASTER_PORT={given['MASTER_PORT']}; a port is 1 to {_LAST_PORT}"
    yield from _on_this_machine(given, rank, count, in_all)


def _on_this_machine(given: Mapping[str, str], rank: int, count: int, in_all: str) -> Iterator[str]:
    """Contradictions in LOCAL_RANK and LOCAL_WORLD_SIZE. LOCAL_RANK also chooses the GPU."""
    here, local = _number(given, "LOCAL_WORLD_SIZE", count), _number(given, "LOCAL_RANK", 0)
    if not 1 <= here <= count:
        yield f"LOCAL_WORLD_SIZE={here} and {in_all}"
    if not local < here:
        size = f"LOCAL_WORLD_SIZE={here}" if given["LOCAL_WORLD_SIZE"] else in_all
        yield f"LOCAL_RANK={local} and {size}"
    if local > rank:
        yield f"LOCAL_RANK={local} and RANK={rank}"
    if not given["LOCAL_WORLD_SIZE"] or here == 1:
        return
    if not given["LOCAL_RANK"]:
        yield f"LOCAL_WORLD_SIZE={here}, but no LOCAL_RANK"
    if here == count and local != rank:  # all ranks are on this machine
        yield f"LOCAL_RANK={local} and RANK={rank}, but all {count} ranks are on this machine"


def _number(given: Mapping[str, str], name: str, absent: int) -> int:
    return int(given[name]) if given[name] else absent
