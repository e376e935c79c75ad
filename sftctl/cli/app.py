"""The Typer app: its commands, and the one place where an error becomes a line and an exit code."""

import errno
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sftctl import __version__, environment
from sftctl.cli import (
    bench_loader,
    chat,
    export,
    inspect_ckpt,
    prepare_data,
    resume,
    streams,
    train,
)
from sftctl.cli import report as report_page
from sftctl.errors import ConfigError, DataError, SftctlError, Stopped


class SftctlGroup(TyperGroup):
    """The error boundary: an expected error is one line, a hint, and its exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; usage errors too are one `error:` line, without the box that typer draws."""
        kwargs["standalone_mode"] = False
        streams.open_missing()
        try:
            code = _exit_code(lambda: super(SftctlGroup, self).main(*args, **kwargs))
        finally:
            streams.settle()
        sys.exit(code)


def _exit_code(command: Callable[[], Any]) -> int:
    """Run a command and tell how it failed, if it did."""
    try:
        code = command()
    except SftctlError as error:
        if environment.debug():
            streams.tell(traceback.format_exc())
        report(error)
        return error.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        report(ConfigError(error.format_message(), hint=_usage_hint(error)))
        return ConfigError.exit_code
    except OSError as problem:
        return _unprinted(problem)
    except SystemExit as leaving:  # rich leaves with 1 where it meets that
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        return 0
    return code if isinstance(code, int) else 0


def _unprinted(problem: OSError) -> int:
    """stdout could not be written: its reader left, or its disk is full; raises all else."""
    if isinstance(problem, BrokenPipeError) and streams.is_left():
        return 0  # the reader has what it wanted
    if problem.errno != errno.ENOSPC or problem.filename is not None:
        raise problem
    report(ConfigError("stdout: can't be written: no space left on it", hint="free some room"))
    return ConfigError.exit_code


def report(error: SftctlError) -> None:
    """`error: …` (or `stopped: …`) and `hint: …` on stderr.

    What every rank meets alike is told by rank 0 alone.
    """
    rank = environment.rank()
    if rank != 0 and isinstance(error, (ConfigError, DataError, Stopped)):
        return
    kind = "stopped" if isinstance(error, Stopped) else "error"
    where = f"rank {rank}: " if rank != 0 else ""
    streams.tell(f"{kind}: {where}{' '.join(error.message.split())}")
    if error.hint:
        streams.tell(f"hint: {error.hint}")


def _usage_hint(error: Any) -> str | None:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else None


app = typer.Typer(
    cls=SftctlGroup,
    name="sftctl",
    help="Fine-tune language models on conversations: stop anywhere, resume anywhere, get the "
    "same run.",
    pretty_exceptions_enable=False,
)
app.command("prepare-data")(prepare_data.prepare_data)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("inspect-ckpt")(inspect_ckpt.inspect_ckpt)
app.command("bench-loader")(bench_loader.bench_loader)
app.command("export")(export.export)
app.command("chat")(chat.chat)
app.command("report")(report_page.report)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"sftctl {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
