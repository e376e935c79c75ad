"""Which setting is recommended, why, and the configuration file that is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.bench.advice import check_new_file, config_lines, recommend, write_new_file
from sftctl.bench.result import LoaderResult
from sftctl.config.load import load_config
from sftctl.errors import ConfigError


def result(
    num_workers: int,
    tokens_per_s: float | None = None,
    prefetch: int = 2,
    pin: bool = False,
    error: str | None = None,
) -> LoaderResult:
    ahead = prefetch if num_workers else None
    return LoaderResult(
        num_workers, pin, ahead, num_workers > 0, tokens_per_s=tokens_per_s, error=error
    )


def workers_of(choice: LoaderResult | None) -> int:
    assert choice is not None
    return choice.num_workers


def test_the_fewest_workers_within_a_tenth_of_the_best_are_recommended() -> None:
    choice, why = recommend([result(0, 40.0), result(1, 70.0), result(2, 91.0), result(4, 100.0)])
    assert workers_of(choice) == 2
    assert why == ("2 workers: the fewest within 10% of the best (4 workers: 1.10 x its tokens/s)")


def test_workers_that_do_not_help_are_not_recommended() -> None:
    choice, why = recommend([result(0, 100.0), result(1, 30.0), result(4, 20.0)])
    assert workers_of(choice) == 0
    assert why == (
        "0 workers: loader processes add copying and gain nothing here "
        "(1 worker: 0.30 x its tokens/s)"
    )


def test_a_small_gain_is_not_worth_a_process() -> None:
    choice, why = recommend([result(0, 96.0), result(2, 100.0)])
    assert workers_of(choice) == 0
    assert why == (
        "0 workers: loader processes gain less than 10% here (2 workers: 1.04 x its tokens/s)"
    )


def test_among_as_many_workers_the_least_prefetch_then_the_fastest_wins() -> None:
    results = [result(1, 100.0, 4), result(1, 95.0, 2), result(1, 99.0, 2, pin=True)]
    choice, why = recommend(results)
    assert choice == results[2]
    assert why == "1 worker: no other number of workers was measured"


def waiting(num_workers: int, step_wait_s: float) -> LoaderResult:
    return replace(result(num_workers, 100.0), step_wait_s=step_wait_s)


def test_the_fewest_workers_whose_wait_stays_under_a_hundredth_of_a_step_are_recommended() -> None:
    results = [waiting(0, 0.03), waiting(1, 0.01), waiting(2, 0.0099), waiting(4, 0.001)]
    choice, why = recommend(results, step_time_s=1.0)
    assert workers_of(choice) == 2
    assert why == (
        "2 workers: the fewest under 1%: a step waits 9.90 ms for data, 0.99% of a step of 1 s"
    )


def test_if_a_step_hardly_waits_loader_processes_can_not_help() -> None:
    choice, why = recommend([waiting(0, 0.0004), waiting(4, 0.0001)], step_time_s=2.0)
    assert workers_of(choice) == 0
    assert why == (
        "0 workers: a step waits 0.40 ms for data, 0.02% of a step of 2 s; "
        "loader processes can't help"
    )


def test_if_every_setting_keeps_the_step_waiting_the_one_with_the_shortest_wait_is_taken() -> None:
    choice, why = recommend([waiting(0, 0.3), waiting(1, 0.1), waiting(2, 0.2)], step_time_s=1.0)
    assert workers_of(choice) == 1
    assert why.startswith("1 worker: no setting stays under 1%; a step waits 100.00 ms")


def test_a_failed_setting_is_never_recommended() -> None:
    assert workers_of(recommend([result(0, error="OSError: no"), result(1, 5.0)])[0]) == 1


@pytest.mark.parametrize("choice", [result(0, 1.0), result(4, 1.0, prefetch=8, pin=True)])
def test_the_written_lines_are_a_configuration(tmp_path: Path, choice: LoaderResult) -> None:
    path = tmp_path / "loader.toml"
    write_new_file(path, config_lines(choice, "/data/my store"))
    data = load_config(path).data
    assert data.path == "/data/my store"
    assert data.num_workers == choice.num_workers
    assert data.pin_memory == ("on" if choice.pin_memory else "off")
    assert data.prefetch_factor == (choice.prefetch_factor or 2)
    assert data.persistent_workers == choice.persistent_workers


def test_the_bundled_sample_needs_no_path() -> None:
    assert "path" not in config_lines(result(0, 1.0), None)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "loader.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="loader.toml: exists already"):
        write_new_file(path, "other")
    assert path.read_text() == "mine"


def test_a_missing_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        check_new_file(tmp_path / "nowhere" / "loader.toml")


def test_a_file_that_can_not_be_written_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".toml-too-long")
    with pytest.raises(ConfigError, match="too long"):
        write_new_file(path, "text")
