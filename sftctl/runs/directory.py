"""RunDir: the files of a run, and the lock that keeps a second process out."""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftctl import __version__
from sftctl.config.load import config_to_toml, load_config
from sftctl.config.schema import RunConfig
from sftctl.disk import DISK, Disk, new_folder, refusals, replace_file
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.jsonio import dump_pretty, read_object

if TYPE_CHECKING:  # it loads torch, and who looks into a run needs none
    from sftctl.world import World

_TOKEN_LOOKS, _TOKEN_WAIT_S = 20, 0.25


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names inside a run directory."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def model_folder(self) -> Path:
        """Configuration, tokenizer and template: resume, chat and export read these."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The trained model as a Hugging Face directory."""
        return self.path / "final"

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run; NoCheckpoint where there is none."""
        run = cls(path)
        require_folder(path)
        if not run.run_file.is_file() or not run.config_file.is_file():
            raise NoCheckpoint(
                f"{path}: not a run directory (no run.json and config.toml)",
                hint=runs_nearby(path),
            )
        run.facts()  # readable, or an error now
        return run

    def config(self) -> RunConfig:
        """The run's configuration, with this directory as its output."""
        return load_config(self.config_file, {"output_dir": str(self.path)})

    def facts(self) -> dict[str, Any]:
        """run.json: run_id, wandb_run_id, created, sftctl."""
        return read_object(self.run_file, NoCheckpoint, "put it back from a copy")

    def write_config(self, config: RunConfig, disk: Disk = DISK) -> None:
        """Replace config.toml, whole or not at all."""
        hint = "a resume that changes a setting writes it there: make the file writable"
        with refusals(self.config_file, ConfigError, hint):
            replace_file(self.config_file, config_to_toml(config).encode(), disk)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; the system releases the lock of a process that dies.

        A record lock, which forked loader processes don't share: they outlive a killed trainer.
        """
        hint = "a run is locked by a file in its folder, which must be writable"
        with refusals(self.path, ConfigError, hint, "the run can't be locked"):
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except (BlockingIOError, PermissionError):
            raise ConfigError(
                f"{self.path}: another sftctl is working on this run",
                hint="wait for it, or stop it with Ctrl-C",
            ) from None
        finally:
            os.close(descriptor)


def refuse_existing(path: Path) -> None:
    """A new run never writes into what is there."""
    if path.exists():
        is_run = RunDir(path).run_file.is_file()
        way_on = f"continue it with `sftctl resume {path}`, or " if is_run else ""
        raise ConfigError(
            f"{path}: exists already",
            hint=f"{way_on}choose another --output-dir",
        )


def require_writable(path: Path) -> None:
    """Refuse a place in which the run directory can't be made: a file is written there and goes."""
    (_nearest(path) / _leave_token(path)).unlink(missing_ok=True)


def require_shared(path: Path, world: "World") -> None:
    """Refuse a place for a run that not all ranks share: rank 0 writes a file, all must see it."""
    if world.world_size == 1:
        return
    token = world.on_main(lambda: _leave_token(path))
    try:
        sees = world.gather(_comes_to_be(_nearest(path) / token))
    finally:
        if world.is_main:
            (_nearest(path) / token).unlink(missing_ok=True)
    blind = [str(rank) for rank, does in enumerate(sees) if not does]
    if blind:
        raise ConfigError(
            f"{path}: what rank 0 writes there is not seen by rank {', '.join(blind)}",
            hint="--output-dir must lie on a disk that all machines share, by the same name",
        )


def _nearest(path: Path) -> Path:
    """What is there on the way to `path`: the folder in which a first one would be made."""
    return next(above for above in path.absolute().parents if above.exists())


def _leave_token(path: Path) -> str:
    name = f".sftctl-{uuid.uuid4().hex}"
    with _making(path):
        (_nearest(path) / name).touch()
    return name


def _making(path: Path) -> AbstractContextManager[None]:
    """The system's refusal to make a run directory, as an error for people."""
    hint = "choose another --output-dir, where you may write"
    return refusals(path, ConfigError, hint, "the run directory can't be made")


def _comes_to_be(file: Path) -> bool:
    """Whether a file is seen within a few seconds: a network's disk may tell late."""
    for _ in range(_TOKEN_LOOKS):
        if file.exists():
            return True
        os.listdir(file.parent)  # lets a network's disk ask anew
        time.sleep(_TOKEN_WAIT_S)
    return False


def create_run(path: Path, config: RunConfig, tokenizer: Any, save_architecture: Any) -> RunDir:
    """Make the directory with everything that a resume needs, whole or not at all.

    `save_architecture(folder)` writes the model's configuration files.
    """
    refuse_existing(path)
    facts = {
        "run_id": uuid.uuid4().hex,
        "wandb_run_id": uuid.uuid4().hex[:8] if config.tracking.wandb else None,
        "created": time.time(),
        "sftctl": __version__,
    }
    with _making(path), new_folder(path) as folder:
        run = RunDir(folder)
        run.config_file.write_text(config_to_toml(config), encoding="utf-8")
        run.run_file.write_bytes(dump_pretty(facts))
        run.model_folder.mkdir()
        run.checkpoints.mkdir()
        save_architecture(run.model_folder)
        tokenizer.save(run.model_folder)
    return RunDir(path)


def run_path(config: RunConfig) -> Path:
    """A new run's directory: `output_dir`, or runs/<model>-<local time>.

    The time is that of the call: whoever calls this hands the path on in `output_dir`. A number is
    added if a run of the same second is there.
    """
    if config.output_dir is not None:
        return config.output_dir
    model = Path(config.model.name).stem or "model"
    name = f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(path for path in (Path("runs", name) for name in names) if not path.exists())


def require_folder(path: Path) -> None:
    """NoCheckpoint where there is no folder of that name."""
    if not path.is_dir():
        raise NoCheckpoint(f"{path}: no such run directory", hint=runs_nearby(path))


def runs_nearby(path: Path) -> str:
    """A hint for whoever meant a run and named something else."""
    folder = path.parent if path.parent.is_dir() else Path("runs")
    found = sorted(folder.glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        return "start one with `sftctl train`"
    return f"the newest run there is {found[-1].parent}"
