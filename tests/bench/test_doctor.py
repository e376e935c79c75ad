"""`sftctl doctor`: the self-test passes here and names a difference; the screen fits."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sftctl import jsonio
from sftctl.bench.doctor import Diagnosis
from sftctl.bench.selftest import SelfTest, _compared
from sftctl.cli.show.machine import diagnosis
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl

Sftctl = Callable[..., Result]


def test_doctor_finds_that_a_resume_is_exact_here(sftctl: Sftctl) -> None:
    result = sftctl("doctor", "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["self_test"]["passed"] is True
    assert "killed after step 7, resumed from step-0000000" in values["self_test"]["what"]
    assert values["flops_per_s"].keys() == {"float32", "bfloat16"}
    assert values["fastest_dtype"] in values["flops_per_s"]
    found = Diagnosis(**{**values, "self_test": SelfTest(**values["self_test"])})
    lines = printed(found, 80)
    assert lines[0].startswith("self-test  ok: resume is exact on this machine")
    assert not any("…" in line for line in lines)
    bad = replace(found, self_test=SelfTest(False, "x differs"), cpu_quota_cores=1.5, load=99.0)
    shown = "\n".join(printed(bad, 200))
    assert "self-test  FAILED: x differs" in shown
    assert "a quota of 1.5" in shown and "other programs use" in shown
    gpu = {"name": "H", "memory_bytes": 10**9, "compute_capability": "9.0", "bfloat16": True}
    shown = "\n".join(printed(replace(found, gpus=[gpu], nccl=True), 200))
    assert "H (1.0 GB, 9.0); NCCL yes, flash kernels no" in shown


def printed(found: Diagnosis, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(diagnosis(found))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def run_of(folder: Path, losses: list[float], model: bytes) -> Path:
    """The parts of a run that the self-test compares."""
    (folder / "final").mkdir(parents=True)
    (folder / "final/model.safetensors").write_bytes(model)
    numbers = {"grad_norm": 1.0, "learning_rate": 1.0, "examples_digest": 1}
    lines = ({"step": step, "loss": loss} | numbers for step, loss in enumerate(losses, 1))
    (folder / "metrics.jsonl").write_bytes(b"".join(map(jsonio.dump_line, lines)))
    return folder


@pytest.mark.parametrize(
    ("losses", "model", "what"),
    [
        ([1.0] * 10, b"a", None),
        ([1.0] * 9 + [2.0], b"a", "the resumed run differs from step 10 on"),
        ([1.0] * 9, b"a", "the resumed run differs from step 0 on"),
        ([1.0] * 10, b"b", "the resumed run ends with another model"),
    ],
)
def test_the_self_test_names_the_difference(
    tmp_path: Path, losses: list[float], model: bytes, what: str | None
) -> None:
    reference = run_of(tmp_path / "a", [1.0] * 10, b"a")
    found = _compared(reference, run_of(tmp_path / "b", losses, model), ["step-4"])
    assert found.passed is (what is None)
    assert what is None or found.what == what
