"""inspect-ckpt and resume agree on whether a run can be resumed, after any change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.config.load import load_config
from sftctl.environment import cache_folder
from sftctl.errors import SftctlError
from sftctl.inspection.inspect import inspect_path
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest, plan_request
from tests.toys.runs import toy_data

Change = Callable[[Path], object]


@pytest.fixture
def run(trained: Path, own_cache: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def edited(**changes: object) -> Change:
    """Keys of config.toml, as the run's owner would change them in an editor."""

    def change(run: Path) -> None:
        given = {key.replace("__", "."): value for key, value in changes.items()}
        overrides = {"output_dir": str(run), **given}
        RunDir(run).write_config(load_config(run / "config.toml", overrides))

    return change


def data_of(run: Path) -> Path:
    path = RunDir(run).config().data.path
    assert path is not None
    return Path(path)


def other_rows(run: Path, count: int) -> None:
    """Another file of conversations, named in config.toml."""
    (run.parent / "other").mkdir()
    data = toy_data(run.parent / "other", count)
    data.write_bytes(data.read_bytes().replace(b"Count", b"Add up"))
    edited(data__path=str(data))(run)


def moved_rows(run: Path) -> None:
    """The same file in another place, named in config.toml."""
    moved = run.parent / "moved.jsonl"
    shutil.copyfile(data_of(run), moved)
    edited(data__path=str(moved))(run)


def in_a_store(run: Path, **changes: object) -> None:
    """The data as a prepared store, named in config.toml."""
    fingerprint = inspect_path(run).facts["data_fingerprint"]
    shutil.copytree(cache_folder() / "stores" / fingerprint[:32], run.parent / "store")
    edited(data__path=str(run.parent / "store"), **changes)(run)


def empty_cache(run: Path) -> None:
    shutil.rmtree(cache_folder() / "stores")


def refuses(run: Path) -> int:
    """The exit code of `sftctl resume RUN --dry-run`."""
    request = ResumeRequest(run)
    try:
        plan_request(request, num_ranks=1).refuse(request)
    except SftctlError as error:
        return error.exit_code
    return 0


CHANGES: list[tuple[str, Change, int]] = [
    ("nothing", edited(), 0),
    ("learning rate", edited(optim__learning_rate=5e-4), 4),
    ("schedule", edited(optim__schedule="linear"), 4),
    ("warm-up", edited(optim__warmup_steps=3), 4),
    ("last learning rate", edited(optim__min_lr_ratio=0.2), 4),
    ("weight decay", edited(optim__weight_decay=0.5), 4),
    ("beta1", edited(optim__beta1=0.8), 4),
    ("beta2", edited(optim__beta2=0.9), 4),
    ("eps", edited(optim__eps=1e-6), 4),
    ("clipping", edited(optim__grad_clip=0.5), 4),
    ("seed", edited(train__seed=3), 4),
    ("model", edited(model__name="small"), 4),
    ("tokenizer", edited(model__tokenizer="other"), 4),
    ("dtype", edited(train__dtype="bfloat16"), 4),
    ("global batch", edited(train__batch_size=3), 4),
    ("strategy", edited(train__strategy="fsdp"), 0),
    ("reduction", edited(train__reduction="exact"), 0),
    ("pass", edited(train__micro_batch_tokens=64), 0),
    ("same product", edited(train__batch_size=2, train__accumulation_steps=2), 0),
    ("loader", edited(data__num_workers=2), 0),
    ("console", edited(tracking__log_interval=3), 0),
    ("more epochs", edited(train__epochs=3), 0),
    ("fewer epochs", edited(train__epochs=1), 2),
    ("fewer steps", edited(train__max_steps=5), 2),
    ("a limit that it has reached", edited(train__max_steps=12), 0),
    ("other rows", lambda run: other_rows(run, 22), 4),
    ("more rows", lambda run: other_rows(run, 40), 4),
    ("the same rows elsewhere", moved_rows, 0),
    ("missing rows", edited(data__path="/nowhere/toy.jsonl"), 3),
    ("shorter rows", edited(data__max_seq_len=16), 4),
    ("other targets", edited(data__train_on="last"), 4),
    ("a store of the same rows", in_a_store, 0),
    ("a store with other settings", lambda run: in_a_store(run, data__train_on="last"), 3),
    ("a store of longer rows", lambda run: in_a_store(run, data__max_seq_len=4), 2),
    ("an empty cache", empty_cache, 0),
    ("no metrics", lambda run: (run / "metrics.jsonl").unlink(), 4),
    ("no model folder", lambda run: shutil.rmtree(run / "model"), 4),
    ("no tokenizer in it", lambda run: (run / "model/tokenizer.json").unlink(), 0),
    ("a configuration that is not TOML", lambda run: (run / "config.toml").write_text("[x"), 2),
    ("no configuration", lambda run: (run / "config.toml").unlink(), 4),
]


@pytest.mark.parametrize(
    ("change", "exit_code"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_a_checkpoint_is_resumable_if_and_only_if_resume_does_not_refuse_it(
    run: Path, change: Change, exit_code: int
) -> None:
    change(run)
    inspection = inspect_path(run)
    assert refuses(run) == exit_code
    assert inspection.resumable == (exit_code == 0), inspection.obstacles
    assert inspection.complete


@pytest.mark.parametrize("change", [Path.unlink, lambda data: data.write_text("{}")])
def test_the_store_that_was_trained_on_is_enough_whatever_became_of_its_rows(
    run: Path, change: Change
) -> None:
    data = data_of(run)
    before = data.read_bytes()
    assert refuses(run) == 0  # the store is in the cache now
    change(data)
    try:
        assert refuses(run) == 0
        assert inspect_path(run).resumable
        empty_cache(run)
        assert refuses(run) == 3
        assert inspect_path(run).resumable == data.exists()  # only a resume reads the rows
    finally:
        data.write_bytes(before)
