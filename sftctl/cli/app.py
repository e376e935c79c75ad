"""The Typer app: its commands, and the one place that turns errors into messages and exit codes."""

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
    """Catches every expected error and reports it as one line, a hint and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command. Usage errors too are one `error:` line, without typer's box."""
        kwargs["standalone_mode"] = False
        streams.open_missing()
        try:
            code = _exit_code(lambda: super(SftctlGroup, self).main(*args, **kwargs))
        finally:
            streams.settle()
        sys.exit(code)


def _exit_code(command: Callable[[], Any]) -> int:
    """Run a command, report its error if it fails, and return the exit code."""
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
        return _stdout_failed(problem)
    except SystemExit as leaving:  # on a closed pipe, rich exits with code 1
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        return 0
    return code if isinstance(code, int) else 0


def _stdout_failed(problem: OSError) -> int:
    """The exit code if stdout was closed or its disk is full; any other error is raised again."""
    if isinstance(problem, BrokenPipeError) and streams.is_closed():
        return 0  # the reader has read enough
    if problem.errno != errno.ENOSPC or problem.filename is not None:
        raise problem
    report(
        ConfigError("stdout: can't be written: no space left on the device", hint="free some space")
    )
    return ConfigError.exit_code


def report(error: SftctlError) -> None:
    """Print `error: …` (or `stopped: …`) and `hint: …` on stderr.

    Errors that all ranks raise in the same way are printed by rank 0 only.
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
