"""sftctl bench-loader."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sftctl.cli import streams
from sftctl.cli.options import ConfigFlags, Json, RanksHere, config_flags, flag_name
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, DataError
from sftctl.tracking.working import working
from sftctl.words import in_shell

if TYPE_CHECKING:
    from sftctl.bench.sweep import BenchSettings

Switch = Literal["auto", "on", "off", "both"]


@config_flags("data.path", "train.batch_size")
def bench_loader(
    *,
    flags: ConfigFlags,
    workers: Annotated[
        str,
        typer.Option(help="Numbers of loader processes. A single number is compared with 0."),
    ] = "0,1,2,4",
    pin_memory: Annotated[
        Switch, typer.Option(help="Page-locked batches; auto: on with CUDA.")
    ] = "auto",
    prefetch_factor: Annotated[
        str, typer.Option(help="Numbers of steps that each loader process prepares in advance.")
    ] = "2",
    persistent_workers: Annotated[
        Switch, typer.Option(help="Keep the loader processes between epochs; auto: on.")
    ] = "auto",
    nproc_per_node: RanksHere = 1,
    run: Annotated[
        Path | None,
        typer.Option(help="Take data, batch size and step time from this run."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Measure the step time of this model."),
    ] = None,
    source: Annotated[
        Literal["store", "text"],
        typer.Option(help="text: tokenize while loading, to compare with a store."),
    ] = "store",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds for each setting, over all rounds.")
    ] = 3.0,
    write_config: Annotated[
        Path | None,
        typer.Option(help="Write the recommended setting to this file, for `sftctl train`."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the data loader and recommend its settings."""
    counts = _numbers("--workers", workers, at_least=0)
    prefetch = _numbers("--prefetch-factor", prefetch_factor, at_least=1)
    config = _config(flags, run, model)
    _refuse_text(write_config, source)
    with working():
        from sftctl.bench.sweep import BenchSettings

        settings = BenchSettings(
            workers=counts,
            pin_memory=pin_memory,
            prefetch=prefetch,
            persistent=persistent_workers,
            seconds=seconds,
            num_ranks=nproc_per_node,
            source=source,
            run=run,
            measure_steps=model is not None,
        )
        _measure(config, settings, write_config, as_json=json)


def _refuse_text(write_config: Path | None, source: str) -> None:
    if write_config is not None and source == "text":
        raise ConfigError(
            "--write-config with --source text: training reads a store, not text",
            hint="leave out --source or --write-config",
        )


def _measure(
    config: RunConfig, settings: "BenchSettings", write_config: Path | None, *, as_json: bool
) -> None:
    """Measure all settings, print the table, and write the recommended setting if asked to."""
    from sftctl.bench import advice, sweep
    from sftctl.cli.show.loader import live_table, loader_report
    from sftctl.cli.show.output import emit

    if write_config is not None:
        advice.check_new_file(write_config)
    with live_table(wanted=not as_json) as on_progress:
        report = sweep.bench_loader(config, settings, on_progress)
    emit(report.to_json(), lambda: loader_report(report), as_json=as_json)
    if report.recommended is None:
        raise DataError(
            f"{report.store}: {report.why}", hint="the table above shows the error of each setting"
        )
    if write_config is not None:
        path = config.data.path and str(Path(config.data.path).absolute())
        advice.write_new_file(write_config, advice.config_lines(report.recommended, path))
        streams.tell(f"wrote {write_config}: sftctl train {in_shell(write_config)}")


def _config(flags: ConfigFlags, run: Path | None, model: str | None) -> RunConfig:
    """The configuration of the run, or a configuration from the flags."""
    if model is not None:
        flags = {**flags, "model.name": model}
    if run is None:
        from sftctl.config.load import load_config

        return load_config(None, flags)
    for key in flags:
        raise ConfigError(
            f"{flag_name(key)} can't be combined with --run, because the run sets it",
            hint=f"leave out {flag_name(key)} or --run",
        )
    from sftctl.cli.train_commands import config_of_run

    return config_of_run(run)


def _numbers(name: str, text: str, at_least: int) -> list[int]:
    """ "0,2,4" -> [0, 2, 4]."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= at_least for word in words):
        raise ConfigError(
            f"{name} {text}: expected whole numbers, each at least {at_least}",
            hint=f"separate them with commas: {name} 1,2,4",
        )
    return [int(word) for word in words]
