"""The output of `sftctl doctor`: the result of the self-test, then facts about the machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from sftctl.cli.show.output import facts_table
from sftctl.words import counted, format_bytes

if TYPE_CHECKING:
    from sftctl.bench.doctor import Diagnosis


def diagnosis(found: "Diagnosis") -> RenderableType:
    """A table with all results."""
    table = facts_table()
    ok = found.self_test.passed
    verdict = "ok" if ok else "FAILED"
    style = "green" if ok else "red"
    table.add_row("self-test", Text(f"{verdict}: {found.self_test.what}", style=style))
    for name, value in _facts(found):
        table.add_row(name, value)
    return table


def _facts(found: "Diagnosis") -> Iterator[tuple[str, str]]:
    yield "versions", _listed(found.versions)
    there = {name: number for name, number in found.optional.items() if number is not None}
    missing = [name for name in found.optional if name not in there]
    absent = f"{'; ' if there else ''}not installed: {', '.join(missing)}" if missing else ""
    yield "optional", _listed(there) + absent
    bfloat16 = {True: "with", False: "without", None: "perhaps with"}[found.has_bfloat16]
    yield "processor", f"{found.processor}, {found.instructions}, {bfloat16} bfloat16 products"
    yield "cores", _cores(found)
    yield "speed", _speed(found)
    yield "GPUs", _gpus(found)
    ram, shm = _size(found.ram_free_bytes), _size(found.shm_free_bytes)
    yield "memory", f"{ram} free; {shm} in /dev/shm"
    disks = (f"{format_bytes(free)} for {name}" for name, free in found.disk_free_bytes.items())
    yield "disk", f"free: {', '.join(disks)}"
    processes = "any number of" if found.process_limit is None else f"{found.process_limit:,}"
    yield "limits", f"{found.open_file_limit:,} open files, {processes} processes"


def _cores(found: "Diagnosis") -> str:
    quota = found.cpu_quota_cores
    text = f"{found.usable_cores} usable"
    text += f", a quota of {quota:g}" if quota is not None else ""
    text += f", {counted(found.num_threads, 'thread')} per rank"
    if found.load is not None:
        busy = ": other programs use the cores" if found.load > found.usable_cores else ""
        text += f"; load {found.load:.1f}{busy}"
    return text


def _speed(found: "Diagnosis") -> str:
    """The measured rate of each dtype, and the fastest dtype."""
    rates = ", ".join(
        f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in found.flops_per_s.items()
    )
    best = found.flops_per_s[found.fastest_dtype]
    others = [rate for name, rate in found.flops_per_s.items() if name != found.fastest_dtype]
    times = f": {found.fastest_dtype} is {best / others[0]:.1f} times as fast" if others else ""
    return f"{rates}{times} (products on {found.device})"


def _gpus(found: "Diagnosis") -> str:
    if not found.gpus:
        return "none that torch can use" if found.device == "cpu" else f"{found.device}"
    names = ", ".join(
        f"{gpu['name']} ({format_bytes(gpu['memory_bytes'])}, {gpu['compute_capability']})"
        for gpu in found.gpus
    )
    return f"{names}; NCCL {_yes(found.nccl)}, flash kernels {_yes(found.flash_attention)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_bytes(num_bytes)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
