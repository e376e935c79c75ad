"""prepare-data on ShareGPT by chat template: the complete command, and its rate without its start.

The templates are the tokenizer's own and the .jinja files of a folder. Another checkout can be
measured in turns with this one.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tests.toys.fetched import sharegpt_file

_HERE = Path(__file__).parents[2]


class _Spent(NamedTuple):
    wall_s: float
    processor_s: float


def preparing_by_template(
    downloads: Path, tokenizer: Path, templates: Path, other: Path | None, rounds: int, folder: Path
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: medians over the rounds.

    The file is prepared completely, and its first quarter too. What the rest takes is the steady
    rate.
    """
    source = sharegpt_file(downloads)
    part = folder / "part.json"
    part.write_bytes(source.read_bytes()[: source.stat().st_size // 4])
    checkouts = {"this": _HERE} | ({"other": other} if other is not None else {})
    names = {"(its own)": None} | {file.stem: file for file in sorted(templates.glob("*.jinja"))}
    spent: dict[tuple[str, str, Path], list[_Spent]] = {}
    for _, key in product(range(rounds), product(names, checkouts, (part, source))):
        name, checkout, file = key
        found = _prepare(file, tokenizer, names[name], checkouts[checkout], folder)
        spent.setdefault(key, []).append(found)
    rows = []
    for name in names:
        rates = [_rates(spent, name, checkout, part, source) for checkout in checkouts]
        ratio = f"{rates[0][2] / rates[1][2]:.1f}" if len(rates) > 1 else ""
        shown = [f"{rate:.1f} MB/s" for whole, steady, _ in rates for rate in (whole, steady)]
        rows.append([name, *shown, ratio])
    kinds = ("whole command", "steady")
    head = [f"{checkout}, {kind}" for checkout, kind in product(checkouts, kinds)]
    return ["template", *head, "steady, by processor time"], rows


def _rates(
    spent: dict[tuple[str, str, Path], list[_Spent]],
    name: str,
    checkout: str,
    part: Path,
    source: Path,
) -> tuple[float, float, float]:
    """Megabytes a second: of the complete command, of the rest, of the rest's processor time."""
    size, rest = (n / 1e6 for n in (source.stat().st_size, _size_after(part, source)))
    whole, first = (
        _Spent(*map(statistics.median, zip(*spent[name, checkout, file], strict=True)))
        for file in (source, part)
    )
    steady = rest / (whole.wall_s - first.wall_s)
    return size / whole.wall_s, steady, rest / (whole.processor_s - first.processor_s)


def _size_after(part: Path, source: Path) -> int:
    return source.stat().st_size - part.stat().st_size


def _prepare(
    source: Path, tokenizer: Path, template: Path | None, checkout: Path, folder: Path
) -> _Spent:
    """One complete command of a checkout, as long as it takes and as much processor time."""
    output = folder / "store"
    command = [sys.executable, "-m", "sftctl", "prepare-data", str(source), "--output", str(output)]
    command += ["--tokenizer", str(tokenizer), "--max-seq-len", "2048", "--json"]
    command += ["--chat-template", str(template)] if template is not None else []
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    paths = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=paths)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["rm", "-r", str(output)], check=True)
    used = (getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    return _Spent(wall_s, sum(used))
