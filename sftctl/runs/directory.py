"""The run directory: its name, its files, and the lock that keeps other processes out."""

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
from sftctl.config.check import resolved
from sftctl.config.load import config_to_toml, file_layer, load_config
from sftctl.config.schema import RunConfig
from sftctl.disk import DISK, Disk, open_regular, refusals, replace_file, require_utf8
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.folders import new_folder
from sftctl.jsonio import dump_pretty, read_object
from sftctl.runs.newest import runs_nearby
from sftctl.runs.place import foreign_parts
from sftctl.words import in_shell

if TYPE_CHECKING:  # it loads torch, which many users of this module do not need
    from sftctl.world import World

_FROM_A_COPY = "put it back from a copy"
_TRIES, _WAIT_S = 20, 0.25  # a network disk can show a file of another machine late


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths in a run directory."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def model_folder(self) -> Path:
        """The model's configuration, tokenizer and chat template."""
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
        """An existing run. NoCheckpoint if there is none, or if one of its files is missing."""
        run = cls(path)
        require_folder(path)
        require_utf8(path, NoCheckpoint)
        missing = [file for file in (run.run_file, run.config_file) if not file.is_file()]
        if len(missing) == 1 and run.checkpoints.exists():
            what = "not a file" if os.path.lexists(missing[0]) else "missing"
            raise NoCheckpoint(f"{missing[0]}: {what}", _FROM_A_COPY)
        if missing:
            raise NoCheckpoint(
                f"{path}: not a run directory (no run.json and config.toml)",
                hint=runs_nearby(path),
            )
        run.facts()  # raises if run.json is damaged
        return run

    def config(self) -> RunConfig:
        """The run's configuration. Its `output_dir` is this directory.

        NoCheckpoint if config.toml names no model. Somebody has emptied such a file: with the
        default values, this would be another run.
        """
        require_utf8(self.path, NoCheckpoint)
        config = load_config(self.config_file, {"output_dir": str(self.path)})
        if "model.name" not in file_layer(self.config_file).values:
            raise NoCheckpoint(f"{self.config_file}: names no model.name", _FROM_A_COPY)
        return config

    def resolved_config(self) -> RunConfig:
        """The run's configuration.

        ConfigError if somebody set a value to `auto` after the run had resolved it.
        """
        return resolved(self.config(), self.config_file)

    def facts(self) -> dict[str, Any]:
        """The content of run.json: run_id, wandb_run_id, created, sftctl."""
        facts = read_object(self.run_file, NoCheckpoint, _FROM_A_COPY)
        facts.setdefault("wandb_run_id", None)
        if not isinstance(facts.get("run_id"), str):
            raise NoCheckpoint(f"{self.run_file}: has no run_id", _FROM_A_COPY)
        if not isinstance(facts["wandb_run_id"], str | None):
            raise NoCheckpoint(f"{self.run_file}: wandb_run_id: not a text", _FROM_A_COPY)
        return facts

    def write_config(self, config: RunConfig, disk: Disk = DISK) -> None:
        """Replace config.toml atomically."""
        hint = "a resume that changes a setting writes it there: make the file writable"
        with refusals(self.config_file, ConfigError, hint):
            replace_file(self.config_file, config_to_toml(config).encode(), disk)

    def require_wandb_run_id(self, disk: Disk = DISK) -> None:
        """Create the run's W&B id, if the run began without W&B."""
        facts = self.facts()
        if facts["wandb_run_id"] is None:
            facts["wandb_run_id"] = _new_wandb_run_id()
            with refusals(
                self.run_file, ConfigError, "make the file writable: it names the W&B run"
            ):
                replace_file(self.run_file, dump_pretty(facts), disk)

    def require_own_parts(self) -> None:
        """CheckpointError if a part that a session writes is a link or has the wrong kind."""
        for problem in foreign_parts(self.path):
            raise problem

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out. If this process dies, the system releases the lock.

        It is a record lock, which forked processes do not inherit: a loader process can outlive a
        killed trainer. Raises CheckpointError if a part that a session writes is a link.
        """
        self.require_own_parts()
        hint = "a run is locked by a file in its folder, which must be writable"
        with refusals(self.path, ConfigError, hint, "the run can't be locked"):
            descriptor = open_regular(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            f"{path}: another sftctl is working on this run",
            hint="wait for it, or stop it with Ctrl-C",
        ) from None


def new_run_path(config: RunConfig) -> Path:
    """The directory of a new run: `output_dir`, or runs/MODEL-TIME.

    Raises ConfigError if it exists or can't be created. Two calls can return different paths,
    because the default has the time. So store the result in `output_dir`.
    """
    path = config.output_dir or _default_path(config)
    _refuse_existing(path)
    (_nearest_folder(path) / _write_token(path)).unlink(missing_ok=True)
    return path


def shared_run_path(config: RunConfig, world: "World") -> Path:
    """The path that rank 0 chooses, on every rank. ConfigError if not all ranks see the same
    folder.
    """
    path: Path = world.on_main(lambda: new_run_path(config))
    if world.world_size > 1:
        _require_shared(path, world)
    return path


def _default_path(config: RunConfig) -> Path:
    """runs/MODEL-TIME, with a number at the end if that directory exists."""
    model = Path(config.model.name).stem or "model"
    name = f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(path for path in (Path("runs", name) for name in names) if not path.exists())


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        is_run = RunDir(path).run_file.is_file()
        resume = f"continue it with `sftctl resume {in_shell(path)}`, or " if is_run else ""
        raise ConfigError(
            f"{path}: exists already",
            hint=f"{resume}choose another --output-dir",
        )


def _require_shared(path: Path, world: "World") -> None:
    """Let rank 0 write a file there. ConfigError if another rank does not see the file."""
    token = world.on_main(lambda: _write_token(path))
    try:
        sees = world.gather(_appears(_nearest_folder(path) / token))
    finally:
        if world.is_main:
            (_nearest_folder(path) / token).unlink(missing_ok=True)
    blind = [str(rank) for rank, sees_it in enumerate(sees) if not sees_it]
    if blind:
        raise ConfigError(
            f"{path}: what rank 0 writes there is not seen by rank {', '.join(blind)}",
            hint="--output-dir must be on a disk that all machines share, under the same name",
        )


def _nearest_folder(path: Path) -> Path:
    """The nearest existing folder above `path`."""
    return next(above for above in path.absolute().parents if os.path.lexists(above))


def _write_token(path: Path) -> str:
    """Write an empty file with a unique name into the nearest existing folder; return the name."""
    name = f".sftctl-{uuid.uuid4().hex}"
    with _making(path):
        (_nearest_folder(path) / name).touch()
    return name


def _making(path: Path) -> AbstractContextManager[None]:
    hint = "choose another --output-dir, where you may write"
    return refusals(path, ConfigError, hint, "the run directory can't be made")


def _appears(file: Path) -> bool:
    """Whether a file becomes visible within five seconds. A network disk may show it late."""
    for _ in range(_TRIES):
        if file.exists():
            return True
        os.listdir(file.parent)  # this makes a network disk ask its server again
        time.sleep(_WAIT_S)
    return False


def create_run(
    path: Path,
    config: RunConfig,
    tokenizer: Any,
    save_architecture: Any,
    facts: dict[str, Any] | None = None,
) -> RunDir:
    """Create the directory, atomically, with everything that a resume needs.

    `save_architecture(folder)` writes the model's configuration files. If the directory replaces an
    existing run, `facts` are those of the existing run. They become the content of run.json.
    """
    _refuse_existing(path)
    facts = facts or {
        "run_id": uuid.uuid4().hex,
        "wandb_run_id": _new_wandb_run_id() if "wandb" in config.tracking.services else None,
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


def _new_wandb_run_id() -> str:
    return uuid.uuid4().hex[:8]


def require_folder(path: Path) -> None:
    """NoCheckpoint if `path` is not a folder."""
    if not path.is_dir():
        raise NoCheckpoint(f"{path}: no such run directory", hint=runs_nearby(path))
