"""Report: what is known of a checkpoint of any tool, and the verdict on it."""

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.groups import component_of

MANIFEST_KEYS = tuple(item.name for item in fields(CheckpointManifest))
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(slots=True, kw_only=True)
class Report:
    """One checkpoint; what a format does not tell is absent from `facts`, or None.

    `facts` has the keys of a manifest. A problem is damage, or code that was refused; `obstacles`
    are why it can't be resumed here and now although it is whole.
    """

    path: Path
    format: str
    facts: dict[str, Any] = field(default_factory=dict)
    step_counts: str | None = None  # what its step counts
    epoch_counts: str | None = None
    next_learning_rate: float | None = None
    loss: float | None = None  # of its last step
    rng: dict[str, Any] | None = None
    data_store: dict[str, Any] | None = None  # where, whether it still fits
    saved_at: float | None = None  # seconds since 1970
    num_bytes: int = 0  # on disk
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # num_bytes, sha256 if known
    tensors: dict[str, StoredTensor] = field(default_factory=dict)  # model.x, optimizer.x
    aliases: dict[str, str] = field(default_factory=dict)  # tied name -> the stored one
    complete: bool = True  # every file and tensor that it speaks of is there, of the right size
    verified: bool | None = None  # every byte checked; None: not asked, or nothing to check by
    problems: list[str] = field(default_factory=list)  # "file: what"
    obstacles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: str | None = None  # the command, or the call, that goes on with it
    checkpoints: "list[Report] | None" = None  # of a run, by step

    @property
    def resumable(self) -> bool:
        """Here and now, by `sftctl resume`."""
        return not self.problems and not self.obstacles

    @property
    def damage(self) -> list[str]:
        """Every problem of everything in the report, with its path."""
        seen = self.checkpoints if self.checkpoints is not None else [self]
        return [_located(report.path, problem) for report in seen for problem in report.problems]

    @property
    def damage_hint(self) -> str | None:
        """What to do about damage."""
        is_ours = self.format.startswith("sftctl")
        return "`sftctl resume` falls back to the newest whole one" if is_ours else None

    @property
    def weights(self) -> dict[str, StoredTensor]:
        """The model's tensors without their prefix, tied ones once."""
        places: set[object] = set()
        found = {}
        for name, tensor in self.tensors.items():
            place = tensor.parts[:1]
            if name.startswith("model.") and not (place and place in places):
                found[name.removeprefix("model.")] = tensor
                places.add(place)
        return found

    @property
    def weights_dtype(self) -> str | None:
        """The type that most of the weights' bytes have."""
        sizes: Counter[str] = Counter()
        for tensor in self.weights.values():
            sizes[tensor.dtype] += tensor.num_bytes
        largest = max(sizes, key=lambda dtype: sizes[dtype], default=None)
        return _DTYPES.get(largest, largest) if largest is not None else None

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.weights.values())

    @property
    def parameters_by_group(self) -> dict[str, int]:
        """Parameters of embedding, attention, mlp, …, the largest first."""
        groups: Counter[str] = Counter()
        for name, tensor in self.weights.items():
            groups[component_of(name)] += tensor.num_elements
        return dict(groups.most_common())

    @property
    def tensors_by_group(self) -> dict[str, dict[str, int]]:
        """Tensors and bytes by the first part of the name: model, optimizer."""
        groups: dict[str, dict[str, int]] = {}
        for name, tensor in self.tensors.items():
            group = groups.setdefault(name.partition(".")[0], {"num_tensors": 0, "num_bytes": 0})
            group["num_tensors"] += 1
            group["num_bytes"] += tensor.num_bytes
        return groups

    @property
    def optimizer_moments(self) -> dict[str, int]:
        """How many tensors there are of each kind that an optimizer keeps."""
        kinds = (name.rpartition(".")[2] for name in self.tensors if name.startswith("optimizer."))
        counts = Counter(kinds)
        return {kind: counts[kind] for kind in MOMENTS if counts[kind]}

    @property
    def epoch_ratio(self) -> float | None:
        """How much of the current epoch is done."""
        of, done = self.facts.get("steps_per_epoch"), self.facts.get("step_in_epoch")
        epoch = self.facts.get("epoch")
        if of and done is not None:
            return float(done / of)
        return epoch % 1 if isinstance(epoch, float) else None

    def summary(self) -> dict[str, Any]:
        """One row of a run's list."""
        shown = ("step", "epoch", "learning_rate", "examples_seen")
        return {
            "name": self.path.name,
            **{key: self.facts.get(key) for key in shown},
            "loss": self.loss,
            "num_bytes": self.num_bytes,
            "saved_at": self.saved_at,
            **self._verdict(),
        }

    def to_json(self) -> dict[str, Any]:
        """The manifest's keys (null where unknown), and what was found."""
        own = (
            *("format", "step_counts", "epoch_counts", "epoch_ratio"),
            *("next_learning_rate", "loss", "rng", "data_store", "saved_at", "num_parameters"),
            *("parameters_by_group", "optimizer_moments", "tensors_by_group", "num_bytes"),
        )
        report = {key: self.facts.get(key) for key in MANIFEST_KEYS}
        report |= {"aliases": self.aliases, "files": self.files} | self._verdict()
        report |= {key: getattr(self, key) for key in own} | {"path": str(self.path)}
        if self.checkpoints is not None:
            report["checkpoints"] = [checkpoint.summary() for checkpoint in self.checkpoints]
        return report

    def _verdict(self) -> dict[str, Any]:
        keys = ("complete", "verified", "resumable", "problems", "obstacles", "notes", "advice")
        return {key: getattr(self, key) for key in keys}


def _located(path: Path, problem: str) -> str:
    """A problem begins with the name of a file: in the report's folder, or the report's own."""
    return str((path.parent if path.is_file() else path) / problem)
