"""Open a run's token store and tokenizer, and refuse a store that does not fit the run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.source_counts import SourceCounts, source_counts
from sftctl.data.manifest import SPLITS, StoreManifest, cached_store, is_prepared
from sftctl.data.mixture import Mixture, mixture_of
from sftctl.data.plan import DataPosition
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.fingerprint import PrepareOptions, StoreInputs, store_fingerprint
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.data.storage.joined import Store, join_stores
from sftctl.data.storage.settings import require_settings
from sftctl.data.store import TokenStore
from sftctl.disk import refusals
from sftctl.errors import ConfigError, DataError
from sftctl.model.presets import is_preset
from sftctl.model.source import ModelSource
from sftctl.model.tokenizer.new_tokens import new_ids
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.mixtures import checkpoint_of_source, of_source, sources_with_paths
from sftctl.runs.resumable import recorded_store, require_named_files
from sftctl.tracking import status
from sftctl.train.preflight.validation_sets import open_sets
from sftctl.train.stop import StopRequest
from sftctl.words import in_shell
from sftctl.world import World


@dataclass(frozen=True, slots=True)
class Inputs:
    """The data of a run: its tokenizer, its stores and its mixture."""

    tokenizer: ChatTokenizer
    train: Store
    validation: Store | None  # the data's own validation part
    sets: Mapping[str, Store]  # all validation sets, by name
    mixture: Mixture | None = None  # None: the data has no named sources

    @property
    def num_planned(self) -> int:
        """The number of examples in an epoch. A repeated example counts each time."""
        return len(self.train) if self.mixture is None else self.mixture.num_planned

    def source_counts(
        self,
        train: TrainConfig,
        num_steps: int,
        start: DataPosition = DataPosition(),
        seen: Mapping[str, Mapping[str, int]] | None = None,
    ) -> list[SourceCounts]:
        """How much of each source is trained in the next `num_steps` steps after `start`.

        `seen` has what was trained before. [] if the sources have no names.
        """
        if self.mixture is None:
            return []
        batch_size = train.global_batch_size
        return source_counts(
            self.mixture, self.train, train.seed, batch_size, num_steps, start, seen
        )

    @property
    def source_fingerprints(self) -> dict[str, str]:
        """The fingerprint of each source's store, by name; {} if all sources are in one store."""
        if self.mixture is None or len(self.mixture.sources) != len(self.train.parts):
            return {}
        pairs = zip(self.mixture.sources, self.train.parts, strict=True)
        return {source.name: part.manifest.fingerprint for source, part in pairs}

    @property
    def set_fingerprints(self) -> dict[str, str]:
        """The fingerprint of each validation set by name, without the data's own part."""
        others = {name: one for name, one in self.sets.items() if one is not self.validation}
        return {name: one.manifest.fingerprint for name, one in others.items()}


def open_inputs(
    config: RunConfig, world: World, stop: StopRequest, resumed: CheckpointManifest | None = None
) -> Inputs:
    """Open the token store of the run, and the stores of its validation sets.

    Rank 0 prepares conversations that are not prepared yet. A signal during this raises Stopped.
    Raises ConfigError or DataError, on all ranks, for a store that does not fit the run. `resumed`
    is the checkpoint that a resume continues. Its own store is opened if the cache still has it.
    """
    paths = world.on_main(lambda: _store_paths(config, stop, resumed))
    stores = [TokenStore.open(path) for path in paths]
    train, mixture = join_stores(stores), mixture_of(config.data, [s.manifest for s in stores])
    held_out = [s.path for s in stores if s.manifest.num_validation_examples]
    validation = [TokenStore.open(path, "validation") for path in held_out]
    joined = join_stores(validation) if validation else None
    tokenizer = stores[0].load_tokenizer()
    new_ids(tokenizer, config.model.new_tokens or ())  # or DataError
    sets = open_sets(config, joined, tokenizer, world, stop)
    return Inputs(tokenizer, train, joined, sets, mixture)


def _store_paths(
    config: RunConfig, stop: StopRequest, resumed: CheckpointManifest | None
) -> list[Path]:
    """The store of each source with a path, in order.

    Without such sources: the store of the run.
    """
    sources = sources_with_paths(config.data)
    if not sources:
        return [_store_path(config, stop, resumed)]
    paths = []
    for source in sources:
        trained_on = checkpoint_of_source(resumed, source.name) if resumed is not None else None
        try:
            paths.append(_store_path(of_source(config, source), stop, trained_on))
        except (ConfigError, DataError) as problem:
            problem.message = f"{source.name}: {problem.message}"
            raise
    return paths


def _store_path(config: RunConfig, stop: StopRequest, resumed: CheckpointManifest | None) -> Path:
    """`data.path` if it is a store; else a store in the cache, prepared from the run's files."""
    stop.check()
    given = config.data.path
    if given is not None and is_prepared(given):
        _require_fitting_store(config, Path(given), resumed)
        return Path(given)
    recorded = recorded_store(resumed, config) if resumed is not None else None
    if recorded is not None and _opens(recorded):
        return recorded
    if resumed is not None:
        require_named_files(config)
    return _cached_store(config, stop)


def _files_of(config: RunConfig) -> tuple[list[Path], list[Path]]:
    """The files to train on and to validate on: `data.path`, or those of the bundled sample."""
    given = config.data.path
    if given is None and config.data.val_fraction:
        raise ConfigError(
            f"data.val_fraction: {config.data.val_fraction}, but the bundled sample has "
            "its own validation part",
            hint="leave it out, or give your own --data",
        )
    if given is not None:
        return [Path(given)], []
    train, validation = sample_files()
    return [train], [validation]


def tokenizer_of(config: RunConfig) -> ChatTokenizer:
    """The tokenizer for preparing the run's conversations."""
    model, data = config.model, config.data
    name = model.tokenizer or (str(SAMPLE_TOKENIZER) if is_preset(model.name) else model.name)
    tokenizer = load_tokenizer(
        name,
        data.chat_template,
        data.template_options,
        template_required=data.format != "text",
        new_tokens=model.new_tokens,
    )
    return tokenizer.with_engine("auto").with_date(data.date)


def is_of_older_rules(config: RunConfig, manifest: CheckpointManifest) -> bool:
    """Whether the checkpoint's data is the data of this run, prepared by older mask rules.

    In a mixture, one source or more must be prepared by older rules, and all others must be
    unchanged.
    """
    sources = sources_with_paths(config.data)
    if not sources:
        return _rules_of(config, manifest.data_fingerprint) == "older"
    recorded = manifest.source_fingerprints
    found = {_rules_of(of_source(config, one), recorded.get(one.name)) for one in sources}
    return "older" in found and found <= {"older", "same"}


def _rules_of(config: RunConfig, fingerprint: str | None) -> str | None:
    """Which mask rules give this fingerprint for the run's data: `same` (those of today) or
    `older`.

    None: the fingerprint belongs to other data.
    """
    given = config.data.path
    if given is not None and is_prepared(given):
        return "same" if StoreManifest.read(Path(given)).fingerprint == fingerprint else None
    train, validation = _files_of(config)
    options = PrepareOptions()
    tokenizer = tokenizer_of(config)
    with StoreInputs.found(train, tokenizer, config.data, validation, options) as made_from:
        if fingerprint == made_from.fingerprint():
            return "same"
        return "older" if fingerprint in made_from.older_fingerprints() else None


def _cached_store(config: RunConfig, stop: StopRequest) -> Path:
    """The store in the cache for the run's files. If it does not exist, it is prepared now."""
    train, validation = _files_of(config)
    tokenizer, data = tokenizer_of(config), config.data
    key = store_fingerprint(train, tokenizer, data, validation)
    path = cached_store(key)
    if not _opens(path):
        hint = (
            "set XDG_CACHE_HOME to a folder that can be written, or run sftctl prepare-data first"
        )
        with refusals(path.parent, ConfigError, hint, "can't create the cache"):
            path.parent.mkdir(parents=True, exist_ok=True)

        def progress(done: Progress) -> None:
            stop.check()
            status.doing(f"preparing {train[0].name}: {done.num_rows:,} rows")

        prepare_store(train, path, tokenizer, data, validation, progress)
    return path


def _opens(path: Path) -> bool:
    """Whether `path` has an undamaged store."""
    try:
        for split in SPLITS:
            TokenStore.open(path, split)
    except DataError:
        return False
    return True


def _require_fitting_store(
    config: RunConfig, path: Path, resumed: CheckpointManifest | None
) -> None:
    """Refuse a store if the run needs another tokenizer, template or setting.

    If the checkpoint `resumed` was trained on this store, the tokenizer was compared when the run
    began, and is not compared again.
    """
    manifest = StoreManifest.read(path)
    if resumed is None or manifest.fingerprint != resumed.data_fingerprint:
        _check_tokenizer(config, path, manifest)
    require_settings(path, manifest, config.data)


def _check_tokenizer(config: RunConfig, path: Path, manifest: StoreManifest) -> None:
    """DataError if the store was prepared with another tokenizer than the run's.

    This is the configured tokenizer, or else the model's.
    """
    name = config.model.tokenizer
    if name is None:
        if is_preset(config.model.name) or ModelSource.of(config.model.name).is_minimind:
            return  # such a model has no tokenizer, so it uses the tokenizer of the store
        name = config.model.name
    new_tokens = config.model.new_tokens or ()
    tokenizer = load_tokenizer(name, template_required=False, new_tokens=new_tokens)
    if tokenizer.content_hash == manifest.tokenizer_hash:
        return
    of_store = TokenStore.open(path).load_tokenizer()
    new_ids(of_store, new_tokens)  # or DataError
    known = tokenizer.hf.get_vocab()
    more = [token for token in of_store.hf.get_added_vocab() if token not in known]
    if more:
        tokens = shlex.quote(",".join([*new_tokens, *more]))
        raise DataError(
            f"{path}: prepared with tokens that the tokenizer of {name} lacks: {', '.join(more)}",
            hint=f"train with `--set model.new_tokens={tokens}`",
        )
    raise DataError(
        f"{path}: prepared with tokenizer {manifest.tokenizer}, which is not that of {name}",
        hint=f"prepare the data again with `--tokenizer {in_shell(name)}`",
    )
