"""The Typer app: all commands. Here errors become messages and exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sftctl import __version__, environment, processes
from sftctl.cli import (
    bench_loader,
    chat,
    export,
    inspect_ckpt,
    prepare_data,
    resume,
    runs,
    streams,
    train,
)
from sftctl.cli import report as report_page
from sftctl.cli.guide import doctor, init
from sftctl.cli.guide.help import Command, columns
from sftctl.cli.guide.hints import hint_for, unknown_key, unknown_option
from sftctl.disk import FILES_OPEN, who_may_not_read
from sftctl.errors import (
    EXIT_INTERRUPTED,
    MORE_MEMORY,
    ConfigError,
    DataError,
    RankAlone,
    SftctlError,
    Stopped,
    UnknownKey,
    lacks_memory,
)
from sftctl.openmp import threads_give_way
from sftctl.words import printable

_LIMITS = FILES_OPEN | {
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "a symbolic link points to itself: use another path",
}
"""Hints for errors of the operating system that any file access can raise."""


_ON_RANKS = ("train", "resume")
"""Commands that a launcher starts once for each rank."""

_SEVERAL = {
    "train": "for several files, repeat --data, or use a pattern in quotes: "
    "--data 'FOLDER/*.jsonl'",
    "init": "for several files, use a folder, or a pattern in quotes, such as 'FOLDER/*.jsonl'",
}
"""Hints for users who give several files to a command that takes one argument."""


class SftctlGroup(TyperGroup):
    """Runs a command. Every expected error is printed as one line and a hint, with an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, and exit with its code. Mistakes in the arguments also give one `error:`
        line, without the box that typer draws."""
        kwargs["standalone_mode"] = False
        environment.quiet_torchs_log()
        streams.open_missing()
        typed = list(args[0] if args and args[0] is not None else sys.argv[1:])
        command = next((self.commands[word] for word in typed if word in self.commands), None)
        try:
            with threads_give_way():
                code = _exit_code(
                    lambda: super(SftctlGroup, self).main(*args, **kwargs), command, typed
                )
            if (
                code == EXIT_INTERRUPTED
            ):  # typer returns this code for a Ctrl-C that the command did not handle
                what = "by SIGINT: nothing to save, nothing lost"
                report(Stopped(what, "run the same command again"))
        finally:
            streams.settle()
        sys.exit(code)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write all commands with the first sentence of their help."""
        commands = [(name, one.get_short_help_str(200)) for name, one in self.commands.items()]
        options = [
            ("--version", "Print the version."),
            ("--install-completion", "Let this shell complete commands and options."),
            ("-h, --help", "Print this help, or after a command, the options of the command."),
        ]
        formatter.write(
            f"Usage: {ctx.command_path} COMMAND [OPTIONS]\n\n{self.help}\n\n"
            f"Commands\n{columns(commands, 20)}\nOptions\n{columns(options, 20)}"
        )


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as problem:
        raise ConfigError(
            f"the working directory can't be used: {problem.strerror}; was it deleted?",
            hint="change into a folder that exists",
        ) from problem


def _exit_code(call: Callable[[], Any], command: Any, typed: Sequence[str]) -> int:
    """Call `call`, which runs `command`. Reports its error, if any, and returns the exit code."""
    try:
        _require_working_directory()
        with processes.ended_by_signals():
            code = call()
    except SftctlError as error:
        if environment.debug():
            streams.tell(traceback.format_exc())
        report(error, command, typed)
        return error.exit_code
    except processes.EndedBySignal as ended:
        report(Stopped(f"by {ended}: nothing to save, nothing lost", "run the same command again"))
        return Stopped.exit_code
    except typer.Abort:
        return EXIT_INTERRUPTED
    except typer.TyperException as error:
        report(_usage_error(error, typed))
        return ConfigError.exit_code
    except OSError as problem:
        return _stdout_failed(problem)
    except (MemoryError, ImportError, RuntimeError) as problem:
        return _out_of_memory(problem)
    except SystemExit as leaving:  # rich exits with code 1 if a pipe is closed
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        return 0
    return code if isinstance(code, int) else 0


def _stdout_failed(problem: OSError) -> int:
    """The exit code for an OSError: a closed stdout, a full disk, or one of `_LIMITS`. Any other
    error is raised again."""
    if streams.reader_has_left(sys.stdout, problem) and streams.is_closed():
        return 0  # the reader closed the pipe, as `head` does; this is not an error
    if problem.errno in _LIMITS:
        name = f"{problem.filename!s:.80}: " if problem.filename is not None else ""
        report(ConfigError(f"{name}{problem.strerror}", hint=_LIMITS[problem.errno]))
        return ConfigError.exit_code
    if problem.errno == errno.EACCES and problem.filename is not None:
        file = Path(os.fsdecode(problem.filename))
        hint = who_may_not_read(file) or "change its rights, or name another path"
        report(ConfigError(f"{file}: {problem.strerror}", hint))
        return ConfigError.exit_code
    if problem.errno != errno.ENOSPC or problem.filename is not None:
        raise problem
    report(
        ConfigError("stdout: can't be written: no space left on the device", hint="free some space")
    )
    return ConfigError.exit_code


def _out_of_memory(problem: Exception) -> int:
    """The exit code if memory or a thread could not be allocated. Other errors are raised again."""
    if not lacks_memory(problem):
        raise problem
    text = " ".join(str(problem).split())
    report(ConfigError(f"not enough memory{': ' if text else ''}{text:.200}", MORE_MEMORY))
    return ConfigError.exit_code


def report(error: SftctlError, command: Any = None, typed: Sequence[str] = ()) -> None:
    """Print `error: …` (or `stopped: …`) and `hint: …` on stderr.

    Errors that all ranks raise are printed only by rank 0. `command` is the command that failed, if
    it is known: the hint then names its options. `typed` is the command line.
    """
    rank = environment.rank() if environment.is_one_of_several() else 0
    is_of_all = isinstance(error, (ConfigError, DataError, Stopped))
    runs_on_ranks = command is None or command.name in _ON_RANKS
    if rank != 0 and is_of_all and runs_on_ranks and not isinstance(error, RankAlone):
        return
    kind = "stopped" if isinstance(error, Stopped) else "error"
    where = f"rank {rank}: " if rank != 0 and runs_on_ranks else ""
    streams.tell(f"{kind}: {where}{' '.join(error.message.split())}")
    if error.hint:
        hint = error.hint
        if isinstance(error, UnknownKey) and command is not None:
            hint = unknown_key(error, command, typed) or hint
        hint = hint if command is None else hint_for(hint, command)
        streams.tell(f"hint: {printable(hint)}")


def _usage_error(error: Any, typed: Sequence[str]) -> ConfigError:
    """The error for a mistake on the command line, with a hint that suggests a correction."""
    context, name = getattr(error, "ctx", None), getattr(error, "option_name", None)
    if context is None:
        return ConfigError(error.format_message(), hint="see `sftctl --help`")
    if isinstance(name, str):
        hint = unknown_option(name, context.command, typed)
        return ConfigError(f"No such option: {printable(name)}", hint)
    hint = f"see `{context.command_path} --help`"
    if "extra argument" in error.format_message():
        hint = _SEVERAL.get(context.command.name, hint)
    return ConfigError(error.format_message(), hint=hint)


app = typer.Typer(
    cls=SftctlGroup,
    name="sftctl",
    help="Fine-tune language models on conversations: stop anywhere, resume anywhere, get the "
    "same run.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prepare-data", cls=Command)(prepare_data.prepare_data)
app.command("train", cls=Command)(train.train)
app.command("resume", cls=Command)(resume.resume)
app.command("inspect-ckpt", cls=Command)(inspect_ckpt.inspect_ckpt)
app.command("bench-loader", cls=Command)(bench_loader.bench_loader)
app.command("export", cls=Command)(export.export)
app.command("chat", cls=Command)(chat.chat)
app.command("report", cls=Command)(report_page.report)
app.command("runs", cls=Command)(runs.runs)
app.command("doctor", cls=Command)(doctor.doctor)
app.command("init", cls=Command)(init.init)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"sftctl {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
