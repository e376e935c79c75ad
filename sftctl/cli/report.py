"""sftctl report."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run, finished or not.", metavar="RUN_DIR")],
    output: Annotated[
        Path | None, typer.Option(help="File to write. Default: RUN_DIR/report.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Write an HTML page about a run: curves, samples, data and masks, checkpoints, events."""
    from sftctl.cli.show.output import emit
    from sftctl.runs.directory import require_folder

    require_folder(run_dir)
    from sftctl.report.page import write_report

    path, record = write_report(run_dir, output)
    text = "\n".join([*(f"remark: {remark}" for remark in record.remarks), f"wrote {path}"])
    emit({"report": path} | record.summary(), text, as_json=json)
