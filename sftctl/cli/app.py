"""The Typer app: its commands, and the one place where an error becomes a line and an exit code."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sftctl import __version__, environment
from sftctl.cli import bench_loader, chat, export, inspect_ckpt, prepare_data, resume, train
from sftctl.cli import report as report_page
from sftctl.errors import ConfigError, DataError, SftctlError, Stopped


class SftctlGroup(TyperGroup):
    """The error boundary: an expected error is one line, a hint, and its exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; usage errors too are one `error:` line, without the box that typer draws."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except SftctlError as error:
            if environment.debug():
                raise
            report(error)
            code = error.exit_code
        except typer.Abort:
            code = 130
        except typer.TyperException as error:
            report(ConfigError(error.format_message(), hint=_usage_hint(error)))
            code = ConfigError.exit_code
        sys.exit(code if isinstance(code, int) else 0)


def report(error: SftctlError) -> None:
    """`error: …` (or `stopped: …`) and `hint: …` on stderr.

    What every rank meets alike is told by rank 0 alone.
    """
    rank = environment.rank()
    if rank != 0 and isinstance(error, (ConfigError, DataError, Stopped)):
        return
    kind = "stopped" if isinstance(error, Stopped) else "error"
    where = f"rank {rank}: " if rank != 0 else ""
    print(f"{kind}: {where}{' '.join(error.message.split())}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


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
