"""Folders and files of other tools: what is there, and how big."""

from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.checkpoint.tensor_index import StoredTensor, stored_tensors
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.pickles.torch_file import TorchFile, read_torch_file, wrong_bytes
from sftctl.inspection.pickles.values import plain
from sftctl.inspection.report import Report

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
NO_CHECKSUMS = "not all of its files hold checksums: of these, headers and sizes were checked"
_LONGEST_JSON_BYTES = 1 << 26


def report_of(path: Path, format: str, patterns: tuple[str, ...] = ("*",)) -> Report:
    """An empty report with the files of a folder, or the one file, and their sizes."""
    inside = (file for pattern in patterns for file in path.glob(pattern))
    found = [path] if path.is_file() else sorted(file for file in inside if file.is_file())
    root = path.parent if path.is_file() else path
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in found}
    return Report(
        path=path,
        format=format,
        files={name: {"num_bytes": size, "sha256": None} for name, size in sizes.items()},
        num_bytes=sum(sizes.values()),
        saved_at=max((file.stat().st_mtime for file in found), default=None),
    )


def read_json(report: Report, name: str) -> dict[str, Any]:
    """A JSON object of the folder; empty where it is absent, or with a problem where it is bad."""
    file = report.path / name
    if not file.is_file():
        return {}
    if file.stat().st_size > _LONGEST_JSON_BYTES:
        report.problems.append(f"{name}: too long for what it is")
        return {}
    try:
        return jsonio.read_object(file, CorruptCheckpoint)
    except CorruptCheckpoint as error:
        damaged(report, error)
        return {}


def damaged(report: Report, error: CorruptCheckpoint) -> None:
    """Add what is wrong with a file, named as within the report's folder."""
    root = report.path.parent if report.path.is_file() else report.path
    report.problems.append(error.message.removeprefix(f"{root}/"))
    report.complete = False


def read_torch(report: Report, name: str) -> TorchFile:
    """A torch.save file of the folder; what is wrong or refused becomes problems of the report."""
    file = report.path / name if report.path.is_dir() else report.path
    if not file.is_file():
        return TorchFile(None, [])
    try:
        found = read_torch_file(file)
    except CorruptCheckpoint as error:
        damaged(report, error)
        return TorchFile(None, [])
    report.problems += [f"{name}: {problem}" for problem in found.problems]
    return found


def settings(report: Report, name: str) -> dict[str, Any]:
    """The attributes of the object in a torch.save file, as plain values."""
    value = plain(read_torch(report, name).value)
    return value if isinstance(value, dict) else {}


def read_weights(report: Report) -> None:
    """The model's tensors: safetensors, or pytorch_model*.bin, and their index."""
    names = list(report.files)
    tensors = _safetensors(
        report, [n for n in names if n.endswith(".safetensors") and "/" not in n]
    )
    if not tensors:
        for name in names:
            if name.endswith(".bin") and Path(name).name.startswith(("pytorch_model", "adapter_")):
                tensors |= read_torch(report, name).tensors
    report.tensors |= {f"model.{name}": tensor for name, tensor in tensors.items()}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        weight_map = read_json(report, index).get("weight_map")
        if isinstance(weight_map, dict):
            _check_index(report, index, weight_map, tensors)


def _safetensors(report: Report, names: list[str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        try:
            tensors |= stored_tensors(report.path, [name])
        except CorruptCheckpoint as error:
            damaged(report, error)
    return tensors


def _check_index(
    report: Report, index: str, weight_map: dict[str, Any], tensors: dict[str, StoredTensor]
) -> None:
    lost = sorted(set(map(str, weight_map.values())) - report.files.keys())
    report.problems += [f"{name}: missing, {index} speaks of it" for name in lost]
    absent = sorted(name for name in weight_map if name not in tensors)
    if absent and not lost and report.complete:
        report.problems.append(f"{index}: {absent[0]} is in no file ({len(absent)} such tensors)")
    report.complete = report.complete and not lost and not absent


def check_bytes(report: Report) -> None:
    """For `--verify`: the checksum of every entry of torch's archives; other files have none."""
    root = report.path if report.path.is_dir() else report.path.parent
    without = set()
    for file, begin, num_bytes in sorted(_stretches(report, root), key=str):
        wrong = wrong_bytes(file, begin, num_bytes)
        if wrong is None:
            without.add(file)
        report.problems += [f"{file.relative_to(root)}: {problem}" for problem in wrong or []]
    if without:
        report.notes.append(NO_CHECKSUMS)
    report.verified = False if report.problems else (None if without else True)


def _stretches(report: Report, root: Path) -> set[tuple[Path, int, int | None]]:
    """Every file that holds tensors or is a torch.save file; of a shared file, each archive."""
    parts = [part for tensor in report.tensors.values() for part in tensor.parts]
    packed = {(p.file, p.begin, p.archive_bytes) for p in parts if p.archive_bytes is not None}
    whole = {part.file for part in parts if part.archive_bytes is None}
    whole |= {root / name for name in report.files if name.endswith(TORCH_SUFFIXES)}
    return packed | {(file, 0, None) for file in whole}
