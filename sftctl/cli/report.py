"""sftctl report."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json, run_or_newest
from sftctl.tracking.working import working


def report(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            help="A run, finished or not. Default: the newest run.", metavar="[RUN_DIR]"
        ),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Argument(help="Other runs, to compare with the first.", metavar="[OTHER_RUN]..."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. Default: report.html in the run. For several runs: "
            "comparison.html in the first run.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write an HTML page about one or several runs: curves, samples, data, checkpoints."""
    from sftctl.cli.show.output import emit, text_lines
    from sftctl.runs.directory import require_folder

    run_dir = run_or_newest(run_dir)
    run_dirs = [run_dir, *(others or [])]
    for path in run_dirs:
        require_folder(path)
    with working():
        from sftctl.report.page import write_comparison, write_report

        if others:
            path, records = write_comparison(run_dirs, output)
        else:
            path, record = write_report(run_dir, output)
    if others:
        found = {"report": path, "runs": [record.summary() for record in records]}
        emit(found, lambda: text_lines([f"wrote {path}"]), as_json=json)
        return
    lines = [*(f"remark: {remark}" for remark in record.remarks), f"wrote {path}"]
    emit({"report": path} | record.summary(), lambda: text_lines(lines), as_json=json)
