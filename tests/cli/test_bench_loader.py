"""sftctl bench-loader, as a user types it: its JSON, its table and its refusals."""

import json
import resource
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sftctl.bench.result import LoaderResult
from sftctl.bench.sweep import LoaderReport
from sftctl.cli.app import app
from sftctl.cli.show.loader import live_table, loader_report
from sftctl.config.load import load_config
from sftctl.machine import Machine
from tests.toys.warm import run_warm

Bench = Callable[..., Any]
"""Runs bench-loader; returns exit code, stdout and stderr."""
CONTRACT = {
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "persistent_workers",
    "batches_per_s",
    "samples_per_s",
    "tokens_per_s",
    "first_batch_s",
    "wait_p50_s",
    "wait_p99_s",
    "rss_bytes",
    "error",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(cache: Path) -> Bench:
    """`bench("--workers", "1")`, with a cache that all tests of this file share."""

    def run(*words: str) -> Any:
        env = {"XDG_CACHE_HOME": str(cache)}
        return CliRunner().invoke(app, ["bench-loader", "--seconds", "0.1", *words], env=env)

    return run


def bench_train(words: Sequence[str]) -> Any:
    return CliRunner().invoke(app, ["train", *words])


def test_the_json_has_the_keys_of_the_contract(bench: Bench) -> None:
    ran = bench("--workers", "1", "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert [r["num_workers"] for r in report["results"]] == [0, 1]
    assert all(r.keys() >= CONTRACT for r in report["results"])
    why = report["recommended"].pop("why")
    assert report["recommended"] in report["results"]
    assert "worker" in why
    assert report["machine"]["usable_cores"] >= 1


def test_the_text_names_the_recommended_setting(bench: Bench) -> None:
    ran = bench("--workers", "0", "--batch-size", "3")
    assert ran.exit_code == 0, ran.stderr
    assert "3 per batch, to cpu" in ran.stdout
    assert "recommended: 0 workers: no other number of workers was measured" in ran.stdout


@pytest.mark.parametrize("switch", ["on", "both"])
def test_pinning_without_cuda_is_not_applicable_rather_than_a_number(
    bench: Bench, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = bench("--workers", "0", "--pin-memory", switch, "--json")
    report = json.loads(ran.stdout)
    assert report["notes"] == ["pin_memory: not applicable, there is no CUDA device"]
    assert [r["pin_memory"] for r in report["results"]] == [False]


def test_train_accepts_what_is_written(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "loader.toml"
    assert bench("--workers", "0", "--write-config", str(path)).exit_code == 0
    assert load_config(path).data.num_workers == 0
    assert CliRunner().invoke(app, ["train", str(path), "--print-config"]).exit_code == 0


def test_an_existing_file_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "loader.toml"
    path.write_text("mine")
    ran = bench("--write-config", str(path))
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"error: {path}: exists already")
    assert path.read_text() == "mine"


def test_waits_are_compared_with_the_step_time_of_a_run(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--model", "tiny", "--max-steps", "3", "--epochs", "1", "--output-dir", str(run)]
    assert bench_train(words).exit_code == 0
    ran = bench("--workers", "0", "--run", str(run), "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["step_time_source"] == f"median of 2 steps of {run}"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert report["step_time_s"] == pytest.approx(
        sum(step["step_time_s"] - step["data_wait_s"] for step in steps[1:]) / 2
    )
    assert report["results"][0]["step_wait_s"] > 0
    assert " of a step" in report["recommended"]["why"]


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_waits_are_compared_with_a_few_steps_of_a_model_on_as_many_ranks(
    bench: Bench, ranks: int
) -> None:
    ran = bench("--workers", "0", "--model", "tiny", "--nproc-per-node", ranks, "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["step_time_source"].endswith("steps of tiny")
    assert report["step_time_s"] > 0
    assert (report["num_ranks"], report["batch_size"]) == (int(ranks), 16 // int(ranks))


def test_text_is_tokenized_while_loading_and_has_no_setting_to_write(
    bench: Bench, tmp_path: Path
) -> None:
    ran = bench("--workers", "0", "--source", "text", "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["source"] == "text" and report["results"][0]["tokens_per_s"] > 0
    refused = bench("--source", "text", "--write-config", str(tmp_path / "x.toml"))
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: --write-config with --source text: ")


def few_files() -> None:
    """From now on this process may have 128 open files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def test_a_file_limit_skips_what_it_does_not_allow() -> None:
    words = ("bench-loader", "--workers", "0,90", "--seconds", "0.1", "--json")
    ran = run_warm(*words, first=few_files)
    assert ran.returncode == 0, ran.stderr
    none, many = json.loads(ran.stdout)["results"]
    assert none["error"] is None
    assert many["error"] == "skipped: needs about 588 open files, 128 are allowed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "1,a"), "error: --workers 1,a: expected whole numbers, each at least 0"),
        (("--workers", ""), "error: --workers : expected whole numbers, each at least 0"),
        (
            ("--prefetch-factor", "2,0"),
            "error: --prefetch-factor 2,0: expected whole numbers, each at least 1",
        ),
        (("--pin-memory", "yes"), "error: Invalid value for '--pin-memory'"),
        (("--seconds", "0"), "error: Invalid value for '--seconds'"),
        (
            ("--run", "x", "--model", "tiny"),
            "error: --model can't be combined with --run, because the run sets it",
        ),
        (("--batch-size", "0"), "error: train.batch_size: 0 is too small; at least 1"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    bench: Bench, words: Sequence[str], message: str
) -> None:
    ran = bench(*words)
    assert ran.exit_code == 2
    assert ran.stderr.startswith(message)


def test_a_run_without_a_second_step_has_no_step_time(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--model", "tiny", "--max-steps", "1", "--epochs", "1", "--output-dir", str(run)]
    assert bench_train(words).exit_code == 0
    ran = bench("--run", str(run))
    assert ran.exit_code == 4
    assert "metrics.jsonl has no second step" in ran.stderr


def test_missing_data_is_an_error_of_the_data(bench: Bench) -> None:
    ran = bench("--data", "nowhere.jsonl")
    assert ran.exit_code == 3
    assert "nowhere.jsonl: no such file" in ran.stderr


def test_a_failed_setting_is_listed_below_the_table(tmp_path: Path) -> None:
    failed = LoaderResult(2, False, 4, True, error="OSError: too many open files")
    report = LoaderReport(
        store=tmp_path,
        source="store",
        num_examples=10,
        batch_size=4,
        num_ranks=1,
        step_time_s=None,
        step_time_source=None,
        device="cpu",
        machine=Machine(2, 1.5, None, 1024),
        notes=(),
        results=(failed,),
        recommended=None,
        why="every setting failed",
    )
    out = StringIO()
    Console(file=out, width=200).print(loader_report(report))
    facts = "2 usable cores, CPU quota of 1.5 cores, memory unknown, no /dev/shm, 1,024 open files"
    assert facts in out.getvalue()
    assert (
        "failed: workers 2, pin off, prefetch 4, persistent on: OSError: too many open files"
        in out.getvalue()
    )
    assert report.to_json()["recommended"] is None


def rendered(
    results: Sequence[LoaderResult], step_time_s: float | None = None, **options: Any
) -> str:
    """The report of these results, as text."""
    report = LoaderReport(
        store=Path("store"),
        source="store",
        num_examples=10,
        batch_size=4,
        num_ranks=2,
        device="cpu",
        machine=Machine(2, None, None, 1024, 8 * 10**9),
        step_time_s=step_time_s,
        step_time_source="3 steps of tiny",
        notes=(),
        results=tuple(results),
        recommended=results[0],
        why="because",
    )
    out = StringIO()
    Console(file=out, width=200, **options).print(loader_report(report))
    return out.getvalue()


NUMBERS: dict[str, Any] = dict(
    batches_per_s=100.0, samples_per_s=400.0, tokens_per_s=9000.0, first_batch_s=0.002,
    wait_p50_s=0.01, wait_p99_s=0.02, rss_bytes=10**8, pss_bytes=9 * 10**7, shm_bytes=0,
    open_files=20, spread_ratio=0.1,
)  # fmt: skip


def test_a_skipped_setting_and_the_step_time_are_shown() -> None:
    good = LoaderResult(0, False, None, False, **NUMBERS, step_wait_s=0.00125)
    skipped = LoaderResult(9, False, 2, True, error="skipped: needs about 78 open files")
    text = rendered([good, skipped], step_time_s=0.5)
    assert "a step takes 0.5 s (3 steps of tiny)" in text
    assert "4 per batch, to cpu, 2 ranks at once" in text
    assert "8.0 GB of memory free" in text
    assert "in step" in text and "1.25" in text
    assert "workers 9, pin off, prefetch 2, persistent on: skipped: needs about 78" in text
    assert "recommended by speed alone" not in text
    assert "recommended by speed alone" in rendered([good])


def test_a_number_far_from_the_best_of_its_column_has_another_colour() -> None:
    good = LoaderResult(0, False, None, False, **NUMBERS)
    slow = LoaderResult(1, False, 2, True, **{**NUMBERS, "tokens_per_s": 1000.0})
    coloured = rendered([good, slow], force_terminal=True, color_system="256")
    tokens = {n: line for line in coloured.splitlines() for n in ("9,000", "1,000") if n in line}
    style = {n: line[: line.index(n)].rpartition("\x1b[")[2] for n, line in tokens.items()}
    assert style["9,000"] != style["1,000"]
    assert "\x1b" not in rendered([good, slow])


def test_nothing_is_shown_live_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with live_table(wanted=True) as on_progress:
        on_progress([LoaderResult(0, False, None, False)], 1, 2)
    assert capsys.readouterr() == ("", "")
