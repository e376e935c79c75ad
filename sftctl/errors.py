"""What a user can meet, drawn as a tree; the number is the exit code.

SftctlError
├── ConfigError             2   usage or configuration
├── DataError               3   an input file, a row of it, a token store
│   └── EngineDiffers       3   a fast tokenizer engine that is not equal to the reference
├── CheckpointError         4   none, can't be written
│   ├── NoCheckpoint        4
│   ├── CorruptCheckpoint   4
│   └── IncompatibleCheckpoint 4
├── TrainingDiverged        5   non-finite loss or gradient
├── RankFailed              1   a rank died of something that is no SftctlError
│   └── LoaderDied          1   one of its loader processes was killed
└── Stopped                75   a signal came before there was anything to save

Exit code 1 is a bug of ours (a traceback), 75 a stop by signal after saving, which is not an error.
"""

EXIT_STOPPED = 75


class SftctlError(Exception):
    """An expected error: `message` says what and where, `hint` what to do next."""

    exit_code = 1
    advice: str | None = None  # the hint of an error that is raised without one of its own

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.advice

    def __reduce__(self) -> tuple[type["SftctlError"], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


class ConfigError(SftctlError):
    """Usage or configuration."""

    exit_code = 2


class DataError(SftctlError):
    """An input file, a row of it, or a token store."""

    exit_code = 3


class EngineDiffers(DataError):
    """A fast tokenizer engine that does not give the reference's ids: the reference is used."""


class CheckpointError(SftctlError):
    """A checkpoint that can't be written."""

    exit_code = 4
    advice = "mend it, then `sftctl resume RUN_DIR` goes on from the last whole checkpoint"


class NoCheckpoint(CheckpointError):
    """There is no checkpoint, or no run, where one was asked for."""

    advice = "`sftctl inspect-ckpt RUN_DIR` lists the checkpoints of a run"


class CorruptCheckpoint(CheckpointError):
    """A file of the checkpoint is missing, unknown, cut or changed."""

    advice = "put it back from a copy, or use another checkpoint"


class IncompatibleCheckpoint(CheckpointError):
    """A whole checkpoint that does not fit this model, data or version."""

    advice = "resume with the model and the settings of the run, or start a new one"


class TrainingDiverged(SftctlError):
    """The loss or the gradient is not a finite number; the weights were not touched."""

    exit_code = 5


class RankFailed(SftctlError):
    """A rank of a multi-process run died of something that is no SftctlError."""

    advice = "killed for want of memory? `dmesg` tells; else what is above this line does"


class LoaderDied(RankFailed):
    """A process that makes batches was killed: out of memory, or by somebody."""


class Stopped(SftctlError):
    """A signal came while the run was being made ready: nothing to save, nothing lost."""

    exit_code = EXIT_STOPPED


def error_named(kind: str) -> type[SftctlError]:
    """The class of this tree with that name: how an error crosses a process boundary."""
    pending: list[type[SftctlError]] = [SftctlError]
    while pending:
        candidate = pending.pop()
        if candidate.__name__ == kind:
            return candidate
        pending += candidate.__subclasses__()
    return SftctlError
