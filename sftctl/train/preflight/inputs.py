"""Opens a run's token store and tokenizer; refuses a store that does not fit the run."""

from dataclasses import dataclass, replace
from pathlib import Path

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import (
    SPLITS,
    StoreManifest,
    cached_store,
    is_prepared,
    require_settings,
)
from sftctl.data.prepare.fingerprint import store_fingerprint
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.data.store import TokenStore
from sftctl.disk import refusals
from sftctl.errors import ConfigError, DataError
from sftctl.model.presets import is_preset
from sftctl.model.source import ModelSource
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.resumable import recorded_store
from sftctl.train.stop import StopRequest
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
    """Make paths absolute, and replace `auto` where the model alone decides."""
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


def _absolute(name: str) -> str:
    """A path is made absolute; the name of a model on the hub stays as it is."""
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


def open_inputs(
    config: RunConfig, world: World, stop: StopRequest, resumed: CheckpointManifest | None = None
) -> Inputs:
    """Open the token store. Conversations that are not prepared yet are prepared first.

    Rank 0 prepares, and its errors are raised on all ranks. A store that does not fit the run is
    refused. A signal during the preparation raises Stopped. A resume opens the store that
    its checkpoint `resumed` was trained on, if it is still in the cache.
    """
    path = world.on_main(lambda: _store_path(config, stop, resumed))
    store = TokenStore.open(path)
    has_validation = store.manifest.num_validation_examples > 0
    validation = TokenStore.open(path, "validation") if has_validation else None
    return Inputs(store.load_tokenizer(), store, validation)


def _store_path(config: RunConfig, stop: StopRequest, resumed: CheckpointManifest | None) -> Path:
    """`data.path` if it is a store, else the store in the cache that is made from it."""
    stop.check()
    given = config.data.path
    if given is not None and is_prepared(given):
        _require_fitting_store(config, Path(given), resumed)
        return Path(given)
    recorded = recorded_store(resumed, config) if resumed is not None else None
    if recorded is not None and _opens(recorded):
        return recorded
    if given is None and config.data.val_fraction:
        raise ConfigError(
            f"data.val_fraction: {config.data.val_fraction}, but the bundled sample has "
            "its own validation part",
            hint="leave it out, or give your own --data",
        )
    train, validation = sample_files() if given is None else (Path(given), None)
    return _cached_store(config, train, [validation] if validation is not None else [], stop)


def _cached_store(
    config: RunConfig, train: Path, validation: list[Path], stop: StopRequest
) -> Path:
    """The store in the cache that is made from these files; prepared if it does not exist."""
    model, data = config.model, config.data
    name = model.tokenizer or (str(SAMPLE_TOKENIZER) if is_preset(model.name) else model.name)
    tokenizer = load_tokenizer(name, data.chat_template).with_engine("auto")
    key = store_fingerprint([train], tokenizer, data, validation)
    path = cached_store(key)
    if not _opens(path):
        hint = "set XDG_CACHE_HOME to a folder that can be written, or prepare-data first"
        with refusals(path.parent, ConfigError, hint, "can't create the cache"):
            path.parent.mkdir(parents=True, exist_ok=True)
        prepare_store([train], path, tokenizer, data, validation, lambda _: stop.check())
    return path


def _opens(path: Path) -> bool:
    """False: there is no store, or it is damaged. In the cache, such a store is made again."""
    try:
        for split in SPLITS:
            TokenStore.open(path, split)
    except DataError:
        return False
    return True


def _require_fitting_store(
    config: RunConfig, path: Path, resumed: CheckpointManifest | None
) -> None:
    """Refuse a store if the run asks for another tokenizer, template or setting.

    The tokenizer of the store that a checkpoint was trained on was compared when the run began.
    """
    manifest = StoreManifest.read(path)
    if resumed is None or manifest.fingerprint != resumed.data_fingerprint:
        _check_tokenizer(config, path, manifest)
    require_settings(path, manifest, config.data)


def _check_tokenizer(config: RunConfig, path: Path, manifest: StoreManifest) -> None:
    """The store's tokenizer must be the configured one, or else the model's own."""
    name = config.model.tokenizer
    if name is None:
        if is_preset(config.model.name) or ModelSource.of(config.model.name).is_minimind:
            return  # such a model has no tokenizer: it uses the store's
        name = config.model.name
    tokenizer = load_tokenizer(name, template_required=False)
    if tokenizer.content_hash != manifest.tokenizer_hash:
        raise DataError(
            f"{path}: prepared with tokenizer {manifest.tokenizer}, which is not that of {name}",
            hint=f"prepare the data again with `--tokenizer {name}`",
        )
