"""metrics.jsonl after an accident: complete lines are kept, and the damaged file is set aside."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.errors import CheckpointError
from sftctl.runs.log import RunLog, require_metrics
from sftctl.words import ranges_of
from tests.toys.metrics import step_metrics
from tests.toys.runs import metrics_of

LAST, BOM = 6, b"\xef\xbb\xbf"


def written(run: Path) -> bytes:
    """Six steps, and a seventh that the checkpoint does not have; returns the six lines."""
    log = RunLog(run, 0)
    for step in range(1, LAST + 1):
        log.log(step_metrics(step))
    data = (run / "metrics.jsonl").read_bytes()
    log.log(step_metrics(LAST + 1))
    log.close()
    return data


def with_zeros(data: bytes) -> bytes:
    """A block that the disk has lost."""
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], bytes(len(lines[2])), *lines[3:]])


def without_an_object(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([lines[0], b"[1, 2]\n", b"5\n", *lines[1:]])


def torn(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]])


ACCIDENTS: list[tuple[Callable[[bytes], bytes], str, int]] = [
    (lambda data: data.replace(b"\n", b"\r\n"), "line ends of Windows", 6),
    (lambda data: BOM + data, "a byte order mark", 6),
    (
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
        "a byte order mark, line ends",
        6,
    ),
    (with_zeros, "zeros in place of lines", 5),
    (without_an_object, "2 damaged lines", 6),
    (torn, "1 damaged line", 5),
    (lambda data: b"\x80\xff\n" + data, "1 damaged line", 6),
]


@pytest.mark.parametrize(("accident", "words", "num_kept"), ACCIDENTS)
def test_complete_lines_are_kept_and_the_file_is_set_aside(
    tmp_path: Path, accident: Callable[[bytes], bytes], words: str, num_kept: int
) -> None:
    original = written(tmp_path)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(damaged := accident(file.read_bytes()))
    require_metrics(tmp_path, len(original), LAST)
    assert file.read_bytes() == damaged
    log = RunLog(tmp_path, len(original), last_step=LAST)
    assert log.repaired is not None and log.repaired.startswith(f"metrics.jsonl: {words}")
    assert f"{num_kept} of 6 steps are kept" in log.repaired
    kept = {line["step"] for line in metrics_of(tmp_path)}
    lost = ranges_of([step for step in range(1, LAST + 1) if step not in kept])
    assert (f"kept (lost: step {lost});" in log.repaired) == (0 < num_kept < LAST)
    log.log(step_metrics(LAST + 1))
    log.close()
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged
    steps = [line["step"] for line in metrics_of(tmp_path)]
    assert len(steps) == num_kept + 1 and steps == sorted(steps) and steps[-1] == LAST + 1
    if num_kept == LAST:
        assert file.read_bytes().startswith(original)


def test_damage_after_the_checkpoint_is_cut_off_without_a_warning(tmp_path: Path) -> None:
    original = written(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"damage\r\n\0\0")
    log = RunLog(tmp_path, len(original), last_step=LAST)
    log.close()
    assert log.repaired is None and (tmp_path / "metrics.jsonl").read_bytes() == original


def test_after_a_repair_an_earlier_checkpoint_finds_its_lines_by_their_steps(
    tmp_path: Path,
) -> None:
    original = written(tmp_path)
    length_at_4 = len(b"".join(original.splitlines(keepends=True)[:4]))
    (tmp_path / "metrics.jsonl").write_bytes(with_zeros(original))
    RunLog(tmp_path, len(original), last_step=LAST).close()
    log = RunLog(tmp_path, length_at_4, last_step=4)
    log.close()
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2, 4]
    assert (tmp_path / "metrics.damaged-2.jsonl").is_file()
    assert log.repaired is not None and log.repaired.endswith(" now metrics.damaged-2.jsonl")


def test_a_file_that_is_only_too_short_is_still_refused(tmp_path: Path) -> None:
    original = written(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(original[: original.index(b"\n") + 1])
    with pytest.raises(CheckpointError, match="but the checkpoint was made"):
        require_metrics(tmp_path, len(original), LAST)
    with pytest.raises(CheckpointError, match="but the checkpoint was made"):
        RunLog(tmp_path, len(original), last_step=LAST)


@pytest.mark.parametrize("content", [b"", bytes(9999), b"\x93\n\xfe{" * 4000, b"{}\n" * 6000])
def test_a_file_without_a_line_of_the_run_is_refused_alike(tmp_path: Path, content: bytes) -> None:
    original = written(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for read in (require_metrics, lambda *of: RunLog(*of[:2], last_step=of[2])):
        with pytest.raises(CheckpointError, match="the checkpoint was made") as caught:
            read(tmp_path, len(original), LAST)
        assert caught.value.exit_code == 4
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_file_that_was_damaged_after_the_plan_is_repaired_too(tmp_path: Path) -> None:
    """An intact file is not parsed a second time, as long as nothing has changed it."""
    original = written(tmp_path)
    require_metrics(tmp_path, len(original), LAST)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step":3', b'"step"?3'))
    os.utime(file, ns=(0, 0))  # the clock of a file system may be coarser than this test
    log = RunLog(tmp_path, len(original), last_step=LAST)
    log.close()
    assert log.repaired is not None and "5 of 6 steps are kept (lost: step 3)" in log.repaired
