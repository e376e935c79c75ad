"""sftctl bench-loader."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sftctl.cli import streams
from sftctl.cli.options import Json, RanksHere, given, option
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, DataError

Switch = Literal["auto", "on", "off", "both"]


def bench_loader(
    data: Annotated[str | None, option("data.path", "--data")] = None,
    workers: Annotated[
        str, typer.Option(help="Numbers of loader processes; one alone is compared with 0.")
    ] = "0,1,2,4",
    pin_memory: Annotated[
        Switch, typer.Option(help="Page-locked batches; auto: on with CUDA.")
    ] = "auto",
    prefetch_factor: Annotated[
        str, typer.Option(help="Numbers of steps that each loader process holds ready.")
    ] = "2",
    persistent_workers: Annotated[
        Switch, typer.Option(help="Keep the loader processes between epochs; auto: on.")
    ] = "auto",
    batch_size: Annotated[str | None, option("train.batch_size", "--batch-size")] = None,
    nproc_per_node: RanksHere = 1,
    run: Annotated[
        Path | None,
        typer.Option(help="Data, batch and step time of this run: waits are judged against it."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Measure a few real steps of this model: waits are judged against it."),
    ] = None,
    source: Annotated[
        Literal["store", "text"],
        typer.Option(help="text: tokenize on the fly, for comparison."),
    ] = "store",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time for each setting, over all its rounds.")
    ] = 3.0,
    write_config: Annotated[
        Path | None,
        typer.Option(help="Write the recommended setting as a configuration for `sftctl train`."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the loader that training uses, and say which of its settings to take."""
    counts = _numbers("--workers", workers, at_least=0)
    prefetch = _numbers("--prefetch-factor", prefetch_factor, at_least=1)
    config = _config(data, batch_size, run, model)
    if write_config is not None and source == "text":
        raise ConfigError(
            "--write-config: train reads the store, so --source text has no setting for it",
            hint="leave out --source, or --write-config",
        )

    from sftctl.bench import advice
    from sftctl.bench import sweep as bench
    from sftctl.cli.show import run as render
    from sftctl.cli.show.loader import live_table, loader_report

    if write_config is not None:
        advice.check_new_file(write_config)
    settings = bench.BenchSettings(
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
    with live_table(wanted=not json) as on_progress:
        report = bench.bench_loader(config, settings, on_progress)
    render.emit(report.to_json(), loader_report(report), as_json=json)
    if report.recommended is None:
        raise DataError(
            f"{report.store}: {report.why}", hint="the table above says of what each setting died"
        )
    if write_config is not None:
        path = config.data.path and str(Path(config.data.path).absolute())
        advice.write_new_file(write_config, advice.config_lines(report.recommended, path))
        streams.tell(f"wrote {write_config}: sftctl train {write_config}")


def _config(
    data: str | None, batch_size: str | None, run: Path | None, model: str | None
) -> RunConfig:
    """The run's own configuration, or one made of the flags."""
    flags = {"--data": data, "--batch-size": batch_size, "--model": model}
    if run is None:
        from sftctl.config.load import load_config

        return load_config(
            None, given(data__path=data, train__batch_size=batch_size, model__name=model)
        )
    for name, value in flags.items():
        if value is not None:
            raise ConfigError(
                f"{name} does not go with --run: the step time is that of the run's own",
                hint=f"leave out {name}, or --run",
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
