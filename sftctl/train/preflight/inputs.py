"""From a configuration to what a run reads: token store, tokenizer, model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sftctl.config.schema import DEFAULT_MAX_SEQ_LEN, DataConfig, RunConfig
from sftctl.data.manifest import PREPARE_ANEW, SPLITS
from sftctl.data.prepare.builder import Progress, silent
from sftctl.data.prepare.prepare import PreparedStore, prepare_store, store_fingerprint
from sftctl.data.prepare.settings import Engine, PrepareSettings
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.data.store import TokenStore
from sftctl.disk import refusals
from sftctl.environment import cache_folder, usable_cores
from sftctl.errors import ConfigError, DataError, EngineDiffers
from sftctl.model.presets import is_preset
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.train.preflight.fits import require_fitting_store
from sftctl.train.stop import StopRequest
from sftctl.words import counted
from sftctl.world import World

PRESET_LEARNING_RATE = 1e-3
PRETRAINED_LEARNING_RATE = 2e-5


@dataclass(frozen=True, slots=True)
class Inputs:
    """What training reads."""

    tokenizer: ChatTokenizer
    train: TokenStore
    validation: TokenStore | None


def resolve_config(config: RunConfig) -> RunConfig:
    """Absolute paths, and numbers in place of what depends on the model."""
    model, data, optim = config.model, config.data, config.optim
    if optim.learning_rate == "auto":
        preset = is_preset(model.name)
        rate = PRESET_LEARNING_RATE if preset else PRETRAINED_LEARNING_RATE
        optim = replace(optim, learning_rate=rate)
    if not is_preset(model.name):
        model = replace(model, name=_absolute(model.name))
    if model.tokenizer is not None:
        model = replace(model, tokenizer=_absolute(model.tokenizer))
    if data.path is not None:
        data = replace(data, path=str(Path(data.path).absolute()))
    if data.chat_template is not None:
        data = replace(data, chat_template=str(Path(data.chat_template).absolute()))
    return replace(config, model=model, data=data, optim=optim)


def open_inputs(config: RunConfig, world: World, stop: StopRequest) -> Inputs:
    """Open the token store, preparing it first where a file of conversations was given.

    Rank 0 prepares; its errors are everyone's. A store made with another tokenizer is refused.
    A signal meanwhile raises Stopped.
    """
    path = world.on_main(lambda: _store_path(config, stop))
    store = TokenStore.open(path)
    tokenizer = stores_tokenizer(path)
    longest = int(store.lengths.max())
    if config.data.max_seq_len is not None and longest > config.data.max_seq_len:
        raise ConfigError(
            f"data.max_seq_len: {config.data.max_seq_len}, but {path} holds an example of "
            f"{counted(longest, 'token')}",
            hint="prepare the data again with --max-seq-len, or leave it out here",
        )
    has_validation = store.manifest.num_validation_examples > 0
    return Inputs(tokenizer, store, TokenStore.open(path, "validation") if has_validation else None)


def stores_tokenizer(store: Path) -> ChatTokenizer:
    """The tokenizer that a store was prepared with."""
    try:
        return load_tokenizer(str(store / "tokenizer"))
    except ConfigError as problem:
        raise DataError(f"{store}: damaged: {problem.message}", PREPARE_ANEW) from problem


def _store_path(config: RunConfig, stop: StopRequest) -> Path:
    """The store that `data.path` is, or the one in the cache that was made from it."""
    stop.check()
    given = config.data.path
    if given is not None and (Path(given) / "manifest.json").is_file():
        require_fitting_store(config, Path(given))
        return Path(given)
    if given is None and config.data.val_fraction:
        raise ConfigError(
            f"data.val_fraction: {config.data.val_fraction}, but the bundled sample has a "
            "validation part of its own",
            hint="leave it out, or give your own --data",
        )
    train, validation = sample_files() if given is None else (Path(given), None)
    name = config.model.tokenizer or _models_tokenizer(config.model.name)
    template = config.data.chat_template
    tokenizer = load_tokenizer(name, Path(template) if template is not None else None)
    tokenizer = with_engine(tokenizer, "auto")
    settings = prepare_settings(config.data)
    validation_inputs = [validation] if validation is not None else []
    key = store_fingerprint([train], tokenizer, settings, validation_inputs)
    path = cache_folder() / "stores" / key[:32]
    if not _opens(path):
        hint = "set XDG_CACHE_HOME to a folder that can be written, or prepare-data first"
        with refusals(path.parent, ConfigError, hint, "the cache can't be made"):
            path.parent.mkdir(parents=True, exist_ok=True)
        prepare_store(
            [train],
            path,
            tokenizer,
            settings,
            validation_inputs,
            on_progress=lambda _: stop.check(),
            num_workers=usable_cores(),
        )
    return path


def _opens(path: Path) -> bool:
    """A store in the cache that was damaged is made anew, for nobody knows where it lies."""
    try:
        for split in SPLITS:
            TokenStore.open(path, split)
    except DataError:
        return False
    return True


def prepare_settings(data: DataConfig) -> PrepareSettings:
    """The part of a run's configuration that decides what a store holds."""
    return PrepareSettings(
        format=data.format,
        max_seq_len=data.max_seq_len or DEFAULT_MAX_SEQ_LEN,
        overflow=data.overflow,
        train_on=data.train_on,
        val_fraction=data.val_fraction,
    )


def _models_tokenizer(model: str) -> str:
    return str(SAMPLE_TOKENIZER) if is_preset(model) else model


def _absolute(name: str) -> str:
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """What `prepare-data` takes besides a run's configuration."""

    strict: bool = False
    engine: Engine = "auto"
    num_workers: int | None = None  # None: one a usable core


def with_engine(tokenizer: ChatTokenizer, engine: Engine) -> ChatTokenizer:
    """The tokenizer with a fast engine where one is asked for and proves equal on probes."""
    if engine == "hf":
        return tokenizer.by_reference("asked for by --engine hf")
    try:
        return tokenizer.fast()
    except EngineDiffers as problem:
        return tokenizer.by_reference(problem.message)


def prepare_files(
    inputs: list[Path],
    validation_inputs: list[Path],
    output: Path,
    config: RunConfig,
    on_progress: Callable[[Progress], None] = silent,
    options: PrepareOptions = PrepareOptions(),
) -> PreparedStore:
    """What `prepare-data` does; without inputs the bundled sample is prepared."""
    if not inputs:
        train, validation = sample_files()
        inputs, validation_inputs = [train], validation_inputs or [validation]
    template = config.data.chat_template
    tokenizer = load_tokenizer(
        config.model.tokenizer or str(SAMPLE_TOKENIZER),
        Path(template) if template is not None else None,
    )
    settings = replace(prepare_settings(config.data), strict=options.strict, engine=options.engine)
    return prepare_store(
        inputs,
        output,
        with_engine(tokenizer, options.engine),
        settings,
        validation_inputs,
        on_progress,
        options.num_workers or usable_cores(),
    )
