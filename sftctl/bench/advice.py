"""Recommend a loader setting, with the reason and the lines for a configuration file."""

import os
from collections.abc import Iterable
from pathlib import Path

from sftctl.bench.result import LoaderResult
from sftctl.config.load import toml_value
from sftctl.config.schema import DataConfig
from sftctl.disk import refusals
from sftctl.errors import ConfigError
from sftctl.words import counted

_AS_GOOD_AS_BEST = 0.9  # this fraction of the best tokens/s is good enough
MOST_WAIT_RATIO = 0.01
"""A step may wait for data for at most this fraction of its time."""


def recommend(
    results: Iterable[LoaderResult], step_time_s: float | None = None
) -> tuple[LoaderResult | None, str]:
    """The recommended setting, and the reason. The setting is None if all settings failed.

    With a step time, the smallest setting is recommended that waits less than 1% of a step. Without
    a step time, it is the smallest setting that reaches 90% of the best tokens/s. "Smallest" means
    the fewest loader processes.
    """
    results = list(results)
    working = [result for result in results if result.error is None]
    if not working:
        return None, f"every setting failed; the first: {results[0].error}"
    if step_time_s is not None:
        return _by_wait(working, step_time_s)
    best = max(map(_speed, working))
    choice = min((r for r in working if _speed(r) >= _AS_GOOD_AS_BEST * best), key=_size)
    return choice, _why(choice, working)


def _by_wait(working: list[LoaderResult], step_time_s: float) -> tuple[LoaderResult, str]:
    quick = [r for r in working if _wait(r) < MOST_WAIT_RATIO * step_time_s]
    choice = min(quick, key=_size) if quick else min(working, key=_wait)
    share = f"{1e3 * _wait(choice):.2f} ms for data, {_wait(choice) / step_time_s:.2%} of a step"
    step = f"of {step_time_s:.3g} s"
    if not quick:
        return choice, f"{_workers(choice)}: no setting stays under 1%; a step waits {share} {step}"
    if choice.num_workers == 0:
        return choice, f"0 workers: a step waits {share} {step}; loader processes can't help"
    return choice, f"{_workers(choice)}: the fewest under 1%: a step waits {share} {step}"


def _wait(result: LoaderResult) -> float:
    return result.step_wait_s if result.step_wait_s is not None else float("inf")


def _size(result: LoaderResult) -> tuple[int, int, float]:
    """Sort key: first the number of processes, then the prefetched steps, then the speed."""
    return result.num_workers, result.prefetch_factor or 0, -_speed(result)


def _speed(result: LoaderResult) -> float:
    return result.tokens_per_s or 0.0


def _why(choice: LoaderResult, working: list[LoaderResult]) -> str:
    others = [result for result in working if result.num_workers != choice.num_workers]
    if not others:
        return f"{_workers(choice)}: no other number of workers was measured"
    rival = max(others, key=_speed)
    ratio = _speed(rival) / _speed(choice)
    if choice.num_workers > 0:
        return (
            f"{_workers(choice)}: the fewest within 10% of the best "
            f"({_workers(rival)}: {ratio:.2f} x its tokens/s)"
        )
    if ratio > 1:
        return (
            f"0 workers: loader processes gain less than 10% here "
            f"({_workers(rival)}: {ratio:.2f} x its tokens/s)"
        )
    return (
        f"0 workers: loader processes add copying and gain nothing here "
        f"({_workers(rival)}: {ratio:.2f} x its tokens/s)"
    )


def _workers(result: LoaderResult) -> str:
    return counted(result.num_workers, "worker")


def config_lines(choice: LoaderResult, data_path: str | None) -> str:
    """The [data] section of a configuration with this setting and this path."""
    data = DataConfig(
        path=data_path,
        num_workers=choice.num_workers,
        pin_memory="on" if choice.pin_memory else "off",
        prefetch_factor=choice.prefetch_factor or DataConfig().prefetch_factor,
        persistent_workers=choice.persistent_workers,
    )
    names = ["num_workers", "pin_memory", "prefetch_factor", "persistent_workers"]
    if data_path is not None:
        names.insert(0, "path")
    return "\n".join(["[data]", *(f"{n} = {toml_value(getattr(data, n))}" for n in names), ""])


def check_new_file(path: Path) -> None:
    """Raise ConfigError if the file can't be written. Call this before the measurement."""
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already", hint="name another file for --write-config")
    if not os.path.isdir(path.parent):
        raise ConfigError(
            f"{path}: there is no folder {path.parent}",
            hint="make the folder first, or name another file for --write-config",
        )


def write_new_file(path: Path, text: str) -> None:
    """Write a new file. Raises ConfigError if it exists or can't be written."""
    check_new_file(path)
    with (
        refusals(path, ConfigError, hint="name another file for --write-config"),
        path.open("x", encoding="utf-8") as file,
    ):
        file.write(text)
