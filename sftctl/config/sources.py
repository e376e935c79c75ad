"""The sources of a mixture in a configuration (names, paths, weights), and the flag --mix."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from itertools import count as numbers_from
from pathlib import Path
from typing import Annotated

from sftctl.config.bounds import Bounds
from sftctl.errors import ConfigError

MAX_WEIGHT = 1000
_HINT = "as in --mix code=0.3,chat=2"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One source of a mixture."""

    name: str
    """The name of the source in metrics and reports."""
    path: str | None = None
    """A prepared store, or a file, folder or pattern of conversations. Unset: the source with this
    name in the store at data.path."""
    weight: Annotated[float, Bounds(at_least=0, at_most=MAX_WEIGHT)] = 1.0
    """How often an epoch trains each example. 0.3: 30% of the examples. 2.5: all examples twice,
    and half of them a third time. 0: no example."""


def check_sources(sources: Iterable[SourceConfig], data_path: str | None) -> None:
    """Raise ConfigError if names are equal or invalid, if a source has no data or two paths, or if
    all weights are 0."""
    sources = tuple(sources)
    require_different((source.name for source in sources), "data.sources")
    with_path = [source.name for source in sources if source.path is not None]
    without = [source.name for source in sources if source.path is None]
    if data_path is None and without:
        raise ConfigError(
            f"data.sources: {without[0]} has no path",
            hint="add a path, or set data.path to the store that has this source",
        )
    if data_path is not None and with_path:
        raise ConfigError(
            f"data.sources: {with_path[0]} has a path, and data.path names other data",
            hint="leave out data.path (--data), or the paths of the sources",
        )
    if with_path and not any(source.weight for source in sources):
        raise ConfigError("data.sources: all weights are 0", hint="raise at least one weight")


def require_different(names: Iterable[str], where: str, what: str = "source") -> None:
    """Raise ConfigError if a name occurs twice or is invalid."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{where}: two {what}s have the name {name}", hint="rename one")
        if not name.strip() or "," in name or "=" in name:
            raise ConfigError(
                f"{where}: {name!r} can't be a {what}'s name", hint="a name has no comma and no ="
            )


def named_inputs(inputs: Iterable[Path]) -> tuple[tuple[str, ...], list[Path]]:
    """The names and paths of the inputs of `prepare-data`: all are NAME=PATH, or all are PATH.

    An existing file with = in its name is a PATH. Raises ConfigError if some inputs have no name.
    """
    parts = [(path, *str(path).partition("=")) for path in inputs]
    named = [bool(name and rest) and not path.exists() for path, name, _, rest in parts]
    if any(named) and not all(named):
        path = next(part[0] for part, is_named in zip(parts, named, strict=True) if not is_named)
        raise ConfigError(f"{path}: has no name, but others have one", hint=f"write NAME={path}")
    if not any(named):
        return (), [part[0] for part in parts]
    names = tuple(name for _, name, _, _ in parts)
    require_different(names, "inputs")
    return names, [Path(rest) for _, _, _, rest in parts]


def sources_of(inputs: Iterable[str]) -> list[dict[str, object]]:
    """Several inputs as values of `data.sources`.

    An input is NAME=PATH, or a PATH. The name of a PATH is the file name without its extension; if
    two names are equal, the second gets a number.
    """
    names, paths = named_inputs(map(Path, inputs))
    rows: dict[str, dict[str, object]] = {}
    for number, path in enumerate(paths):
        stem = path.name.partition(".")[0] or path.name
        wanted = names[number] if names else stem.replace("=", "-").replace(",", "-")
        tries = chain([wanted], (f"{wanted}-{n}" for n in numbers_from(2)))
        name = next(one for one in tries if one not in rows)
        rows[name] = {"name": name, "path": str(path)}
    return [*rows.values()]


def parse_mix(text: str) -> dict[str, str]:
    """`code=0.3,chat=2` -> {"code": "0.3", "chat": "2"}. Raises ConfigError for other texts."""
    weights: dict[str, str] = {}
    for part in text.split(","):
        name, equals, weight = (piece.strip() for piece in part.rpartition("="))
        if not name or not equals or not weight:
            raise ConfigError(f"--mix {text}: expected NAME=WEIGHT,…", hint=_HINT)
        if name in weights:
            raise ConfigError(f"--mix {text}: {name} occurs twice", hint=_HINT)
        weights[name] = weight
    return weights


def mixed(
    sources: Iterable[SourceConfig] | None, weights: Mapping[str, str], data_path: str | None
) -> list[dict[str, object]]:
    """Values of `data.sources` with these weights.

    A name that is not in `sources` is a source in the store at `data_path`. Raises ConfigError if
    `data_path` is unset.
    """
    rows: dict[str, dict[str, object]] = {
        source.name: {"name": source.name, "path": source.path, "weight": source.weight}
        for source in sources or ()
    }
    for name, text in weights.items():
        if name not in rows and data_path is None:
            known = f"there are {', '.join(rows)}" if rows else "the run has no named sources"
            raise ConfigError(
                f"--mix {name}={text}: no source {name}; {known}",
                hint="name sources in [[data.sources]], or prepare-data NAME=PATH and --data STORE",
            )
        try:
            weight = float(text)
        except ValueError:
            raise ConfigError(f"--mix {name}={text}: not a number", hint=_HINT) from None
        rows.setdefault(name, {"name": name})["weight"] = weight
    return [{k: v for k, v in row.items() if v is not None} for row in rows.values()]
