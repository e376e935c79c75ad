"""The errors that a user can meet, as a tree; the number is the exit code.

SftctlError
├── ConfigError             2   usage or configuration
│   ├── RankAlone           2   ranks that can't meet
│   └── UnknownKey          2   a key that no configuration has
├── DataError               3   an input file, a row of it, a token store
│   ├── EngineDiffers       3   a fast tokenizer engine that is not equal to the reference
│   └── LayoutDiffers       3   a text rendered once is not the text rendered turn by turn
├── CheckpointError         4   a checkpoint can't be written
│   ├── NoCheckpoint        4
│   ├── CorruptCheckpoint   4
│   └── IncompatibleCheckpoint 4
├── TrainingDiverged        5   non-finite loss or gradient
├── RankFailed              1   a rank died of an unexpected error
│   └── LoaderDied          1   one of its loader processes was killed
└── Stopped                75   a signal came before there was anything to save

Exit code 1 is a bug in sftctl (a traceback). 75 is a stop by a signal, after saving: not an error.
130 is Ctrl-C in a command that has nothing to save, or a second Ctrl-C while it saves.
"""

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class SftctlError(Exception):
    """An expected error. `message` says what is wrong and where, `hint` says what to do."""

    exit_code = 1
    advice: str | None = None  # the default hint

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.advice

    def __reduce__(self) -> tuple[type["SftctlError"], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


class ConfigError(SftctlError):
    """Usage or configuration."""

    exit_code = 2


class RankAlone(ConfigError):
    """This process can't be one of several ranks.

    The other ranks may not have this error, so each rank prints its own.
    """


class UnknownKey(ConfigError):
    """A key that no configuration has. `cli` looks it up among the keys of other tools."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        key: str = "",
        value: object = None,
        *,
        is_in_file: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.key, self.value, self.is_in_file = key, value, is_in_file


class DataError(SftctlError):
    """An input file, a row of it, or a token store."""

    exit_code = 3


class EngineDiffers(DataError):
    """A fast tokenizer engine whose ids differ from the reference's. The reference is used then."""


class LayoutDiffers(DataError):
    """A row rendered once (the short way) has other text than when rendered turn by turn.

    Turn by turn is the long way. It is then used for all rows.
    """


class CheckpointError(SftctlError):
    """A checkpoint can't be written."""

    exit_code = 4
    advice = "fix it, then `sftctl resume RUN_DIR` continues from the last complete checkpoint"


class NoCheckpoint(CheckpointError):
    """There is no checkpoint, or no run, at the given path."""

    advice = "`sftctl inspect-ckpt RUN_DIR` lists the checkpoints of a run"


class CorruptCheckpoint(CheckpointError):
    """A file of the checkpoint is missing, unknown, truncated or changed."""

    advice = "put it back from a copy, or use another checkpoint"


class IncompatibleCheckpoint(CheckpointError):
    """An undamaged checkpoint that does not fit this model, data or version."""

    advice = "resume with the model and the settings of the run, or start a new one"


class TrainingDiverged(SftctlError):
    """The loss or the gradient is not finite; the weights were not changed."""

    exit_code = 5


class RankFailed(SftctlError):
    """A rank of a multi-process run died of an error that is not a SftctlError."""

    advice = "the lines above say why; if there are none, `dmesg` shows whether memory ran out"


class LoaderDied(RankFailed):
    """A loader process was killed, perhaps because memory ran out."""


class Stopped(SftctlError):
    """A signal came before the first step. Nothing had to be saved, so nothing is lost."""

    exit_code = EXIT_STOPPED


def error_named(kind: str) -> type[SftctlError]:
    """The error class with this name, by which an error is sent to another process."""
    pending: list[type[SftctlError]] = [SftctlError]
    while pending:
        candidate = pending.pop()
        if candidate.__name__ == kind:
            return candidate
        pending += candidate.__subclasses__()
    return SftctlError


MORE_MEMORY = "close other programs, or raise the limits: `ulimit -v` and `ulimit -u` show them"
_NO_MEMORY = ("failed to map segment", "allocate memory", "start new thread")


def lacks_memory(problem: BaseException) -> bool:
    """Whether an error means that a library had not enough memory, or could start no thread."""
    of_libraries = isinstance(problem, (ImportError, RuntimeError, OSError))
    return isinstance(problem, MemoryError) or (
        of_libraries and any(one in str(problem) for one in _NO_MEMORY)
    )
