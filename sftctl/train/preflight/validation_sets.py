"""Open the validation sets of a run: the data's own part, and the sets of `evaluation.sets`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sftctl.config.evaluation import SetConfig
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.manifest import StoreManifest, cached_store, is_prepared
from sftctl.data.prepare.fingerprint import store_fingerprint
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.storage.joined import Store
from sftctl.data.store import TokenStore
from sftctl.disk import refusals
from sftctl.errors import ConfigError, DataError, SftctlError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.train.stop import StopRequest
from sftctl.world import World


def with_fraction(config: RunConfig) -> DataConfig:
    """The data settings, with `val_fraction` from `evaluation.sets`.

    Raises ConfigError if `data.val_fraction` is another number.
    """
    fraction, data = config.evaluation.fraction, config.data
    if fraction is None:
        return data
    if data.val_fraction not in (0.0, fraction):
        raise ConfigError(
            f"evaluation.sets: {config.evaluation.own_name} takes {fraction} of the data, and "
            f"data.val_fraction {data.val_fraction}: the data is split once",
            hint="leave data.val_fraction out",
        )
    return replace(data, val_fraction=fraction)


def open_sets(
    config: RunConfig,
    own: Store | None,
    tokenizer: ChatTokenizer,
    world: World,
    stop: StopRequest,
) -> dict[str, Store]:
    """The store of each validation set by name, the data's `own` part first; {} if there is none.

    Rank 0 prepares sets that are not stores yet, with the run's `tokenizer` and settings. Raises
    DataError for a store of another tokenizer, and ConfigError if `evaluation.best` names a set
    that does not exist.
    """
    sets = [one for one in config.evaluation.sets or () if one.path is not None]
    paths = world.on_main(lambda: [_path_of(one, config, tokenizer, stop) for one in sets])
    found: dict[str, Store] = {} if own is None else {config.evaluation.own_name: own}
    for one, path in zip(sets, paths, strict=True):
        if one.name in found:
            raise ConfigError(
                f"evaluation.sets: {one.name} is the name of the data's own validation part",
                hint="give the set another name",
            )
        has_own = StoreManifest.read(path).num_validation_examples > 0
        found[one.name] = TokenStore.open(path, "validation" if has_own else "train")
    _require_goal(config, list(found))
    return found


def _require_goal(config: RunConfig, names: Sequence[str]) -> None:
    wanted = config.evaluation.goal.set_name
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"evaluation.best: {config.evaluation.best}: there is no validation set {wanted}",
            hint=f"there are {', '.join(names)}" if names else "add one in [[evaluation.sets]]",
        )


def _path_of(
    one: SetConfig, config: RunConfig, tokenizer: ChatTokenizer, stop: StopRequest
) -> Path:
    """The store of a set: its path if that is a store, else a store in the cache (prepared if
    missing).
    """
    assert one.path is not None
    given = Path(one.path)
    try:
        if not is_prepared(one.path):
            return _prepared(given, config.data, tokenizer, stop)
        if StoreManifest.read(given).tokenizer_hash != tokenizer.content_hash:
            raise DataError(
                f"{given}: prepared with another tokenizer than the training data",
                hint="prepare both with one --tokenizer",
            )
    except SftctlError as problem:
        problem.message = f"evaluation.sets: {one.name}: {problem.message}"
        raise
    return given


def _prepared(given: Path, data: DataConfig, tokenizer: ChatTokenizer, stop: StopRequest) -> Path:
    data = replace(data, path=str(given), sources=None, val_fraction=0.0)
    tokenizer = tokenizer.with_engine("auto").with_date(data.date)
    path = cached_store(store_fingerprint([given], tokenizer, data))
    try:
        TokenStore.open(path)
    except DataError:  # missing or damaged: a store in the cache is prepared again
        hint = (
            "set XDG_CACHE_HOME to a folder that can be written, or run sftctl prepare-data first"
        )
        with refusals(path.parent, ConfigError, hint, "can't create the cache"):
            path.parent.mkdir(parents=True, exist_ok=True)
        prepare_store([given], path, tokenizer, data, (), lambda _: stop.check())
    return path
