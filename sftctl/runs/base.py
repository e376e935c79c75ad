"""The frozen base of an adapter run, identified by the hashes of its files. Loads no torch.

A checkpoint of an adapter has only the trained weights. Its manifest records the base, and a resume
refuses another base.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftctl.checkpoint.sealed import is_sealed, read_seal
from sftctl.config.adapter import AdapterConfig
from sftctl.config.existing_adapter import CONFIG_NAME, WEIGHTS_NAME, base_doubts
from sftctl.disk import hash_file, read_refusals
from sftctl.errors import ConfigError, CorruptCheckpoint, IncompatibleCheckpoint
from sftctl.model.source import ModelSource

Base = dict[str, Any]
"""The record of a base: `name`, `revision` (of a model on the hub, else None) and `files`.

`files` maps the name of each file to `num_bytes`, `sha256` and `modified_ns`, its modification
time. Two keys are optional: `quantize` if the base was in nf4, and `start` if the run continued an
adapter. `start` has the name and the files of this adapter."""

_FILES = ("config.json", "model*.safetensors*", "pytorch_model*.bin*")
_START_BACK = (
    "put the adapter back, or keep two checkpoints (--keep 2): a replay then starts at the first"
)
_PUT_BACK = "an adapter fits only the base that it was trained on: put that base back"


def identify(name: str, known: Base | None = None, *, pinned: bool = True) -> Base:
    """The base that `name` means, with the hashes of its files.

    For a model on the hub, the revision of `known` is used if `known` is the same model and
    `pinned` is set; otherwise the hub's current revision. A file whose size and modification time
    are those in `known` is not hashed again. ConfigError if a file can't be read.
    """
    revision = None
    place = Path(name)
    if not place.exists():
        is_known = pinned and known is not None and known["name"] == name
        revision = known["revision"] if is_known and known is not None else None
        place = _snapshot(name, revision)
        revision = place.name
    remembered = (known or {}).get("files", {})
    files = {file.name: _identified(file, remembered.get(file.name)) for file in _files_at(place)}
    return {"name": name, "revision": revision, "files": files}


def identify_start(folder: str) -> Base:
    """The adapter that a run continues, with the hashes of its files."""
    place = Path(folder)
    files = {name: _identified(place / name, None) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    return {"name": folder, "files": files}


def require_same_start(where: Path, recorded: Base | None, folder: str | None) -> None:
    """IncompatibleCheckpoint if the adapter that the run continued is not the recorded one.

    This matters only for a start at step 0: later checkpoints have all weights of the adapter.
    """
    start = (recorded or {}).get("start")
    files = start.get("files") if isinstance(start, dict) else None
    if not isinstance(files, dict) or folder is None:
        return
    try:
        found = identify_start(folder)
    except ConfigError as error:
        raise IncompatibleCheckpoint(
            f"{where}: the adapter that the run continued can't be read: {error.message}",
            hint=_START_BACK,
        ) from error
    for problem in _differences(files, found["files"]):
        raise IncompatibleCheckpoint(
            f"{where}: {folder} is not the adapter that the run continued: {problem}",
            hint=_START_BACK,
        )


def require_base_of_start(adapter: AdapterConfig, model: str) -> None:
    """IncompatibleCheckpoint if a new run continues a run's adapter whose base has changed since.

    For a hub model, the current revision is compared, because a new run uses it. If `model` is
    another model, this may be intended, and `start_doubts` warns. ConfigError if the base can't be
    read.
    """
    recorded = _base_of_start(adapter)
    if adapter.start is None or recorded is None or not _is_named(model, recorded):
        return
    found = identify(model, recorded, pinned=False)
    for problem in _differences(recorded["files"], found["files"]):
        revision, now = recorded["revision"], found["revision"]
        of_now = f" in revision {now}" if now is not None and now != revision else ""
        raise IncompatibleCheckpoint(
            f"{adapter.start}: {model}{of_now} is not the base that it was trained on: {problem}",
            hint=_PUT_BACK
            if not of_now
            else f"download revision {revision} into a folder, and name the folder with --model",
        )


def _is_named(model: str, recorded: Base) -> bool:
    """Whether the name means the recorded base: the same path, or the same name on the hub."""
    if not Path(model).exists():
        return bool(recorded["name"] == model)
    return Path(recorded["name"]).absolute() == Path(model).absolute()


def start_doubts(adapter: AdapterConfig, model: str) -> Iterator[str]:
    """Warnings if the adapter that a run continues may have another base, or a base in another
    form.
    """
    recorded, start = _base_of_start(adapter), adapter.start
    different = [*base_doubts(adapter, model)]
    if different and recorded is not None:
        files = identify(model, recorded, pinned=False)["files"]
        found = [*_differences(recorded["files"], files)]
        different = [f"{line}: {found[0]}" for line in different] if found else []
    yield from different
    form = recorded.get("quantize") if recorded is not None else None
    if recorded is not None and form != adapter.quantize:
        was, now = (f"in {one}" if one else "not quantized" for one in (form, adapter.quantize))
        way = f"--set adapter.quantize={form}" if form else "without adapter.quantize"
        yield f"{start} was trained on a base {was}, and this base is {now}; {way} keeps its form"


def _base_of_start(adapter: AdapterConfig) -> Base | None:
    """The recorded base of the adapter that a run continues; None if nothing is recorded."""
    if adapter.start is None or not is_sealed(Path(adapter.start)):
        return None
    recorded = read_seal(Path(adapter.start)).base
    if recorded is not None:
        _require_record(Path(adapter.start), recorded)
    return recorded


def _identified(file: Path, known: Mapping[str, Any] | None) -> dict[str, Any]:
    with read_refusals(file, ConfigError, "make it readable"):
        status = file.stat()
        seen = {"num_bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        if known is not None and all(known.get(key) == value for key, value in seen.items()):
            return dict(known)
        entry = hash_file(file)
    return {**seen, "num_bytes": entry.num_bytes, "sha256": entry.sha256}


def base_location(name: str, recorded: Base | None) -> str:
    """Where to load a base from: `name`, or the folder of the recorded revision of a hub model."""
    if recorded is None or recorded["name"] != name or recorded["revision"] is None:
        return name
    return str(_snapshot(name, recorded["revision"]))


def require_same_base(
    where: Path, recorded: Base, name: str, config_file: Path | None = None
) -> None:
    """IncompatibleCheckpoint if `name` is not the recorded base. The hint names `config_file`, if
    its model.name is this name.

    CorruptCheckpoint if the record in the checkpoint at `where` is invalid.
    """
    _require_record(where, recorded)
    hint = _PUT_BACK
    if config_file is not None:
        hint += f", or set model.name in {config_file} to where it is now"
    try:
        found = identify(name, recorded)
    except ConfigError as error:
        raise IncompatibleCheckpoint(
            f"{where}: its base can't be read: {error.message}", hint=hint
        ) from error
    for problem in _differences(recorded["files"], found["files"]):
        raise IncompatibleCheckpoint(
            f"{where}: {name} is not the base that it was trained on: {problem}", hint=hint
        )


def _differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    if len(recorded) == len(found) == 1:  # one file, which may have another name now
        recorded, found = ({"its file": [*files.values()][0]} for files in (recorded, found))
    for name, entry in recorded.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name]["sha256"] != entry["sha256"]:
            yield f"{name} has another content (SHA-256)"


def _require_record(where: Path, recorded: Base) -> None:
    files = recorded.get("files")
    is_right = isinstance(files, dict) and all(
        isinstance(one, dict) and isinstance(one.get("sha256"), str) for one in files.values()
    )
    is_named = isinstance(recorded.get("name"), str)
    if not (is_right and is_named and isinstance(recorded.get("revision"), str | None)):
        raise CorruptCheckpoint(f"{where / 'manifest.json'}: base: not the record of a base")


def _files_at(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    return sorted({file for pattern in _FILES for file in place.glob(pattern)})


def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a hub model in the cache. The model is downloaded if it is not there."""
    source = ModelSource.of(name)  # or ConfigError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*_FILES, "generation_config.json"],
            local_files_only=bool(source.arguments.get("local_files_only")),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as problem:
        what = name if revision is None else f"{name}, revision {revision},"
        raise ConfigError(
            f"{what} is not in the cache of the hub, and can't be fetched",
            hint="a network is needed, or the folder of the model as model.name",
        ) from problem
    return Path(folder)
