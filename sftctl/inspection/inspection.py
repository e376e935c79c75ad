"""Inspection: the facts about a checkpoint of any tool, and whether it is good."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.tensor_index import NUMBER_TYPES, StoredTensor
from sftctl.inspection.pickles.allowed import REFERS_TO_CODE
from sftctl.model.folder.config_edits import EMPTY_TENSORS
from sftctl.model.gguf.kind import LFS_PROBLEM

Tensors = Mapping[str, StoredTensor]

MANIFEST_KEYS = tuple(item.name for item in fields(CheckpointManifest) if item.name != "numbers")
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_COMPONENTS = {  # the first pattern that is found in a parameter's name decides
    "lora": re.compile(r"lora"),
    "embedding": re.compile(r"embed|tok_emb|token_embd|wte|wpe"),
    "experts": re.compile(r"expert|router|_exps|gate_inp"),
    "norm": re.compile(r"norm|\bln_|ln_f"),
    "attention": re.compile(r"attn|attention|[qkvo]_proj\b"),
    "mlp": re.compile(r"mlp|ffn|feed_forward|(gate|up|down)_proj\b"),
    "head": re.compile(r"lm_head|\boutput\.weight|^output|score\.weight"),
}
NO_TENSORS = "it holds no tensors"

NOT_FINISHED = "its download is not finished"
WEB_PAGE = "a web page, not the file itself"
OTHER_NAME = "by its content this is"
NOT_READ = "not weights that sftctl reads"
HERE_IS = "in their place:"
_REMEDIES = {  # a phrase in a problem -> what to do about the problem
    REFERS_TO_CODE: "do not load it with torch.load; ask its author for the weights as safetensors",
    LFS_PROBLEM: "`git lfs pull` in its folder downloads the files",
    "convert the original": "convert the original model again with a current llama.cpp",
    "was not finished": "use an earlier checkpoint of the same run",
    "it is written last": "use an earlier checkpoint of the same run",
    NOT_READ: "convert it to a Hugging Face model with the tool that wrote it",
    HERE_IS: "name the file or folder that holds the weights",
    "byte order mark": "save the file as UTF-8 without a byte order mark",
    NO_TENSORS: "name the file or folder that holds the weights",
    "config.json:": "correct this file, or copy or download it again",
    NOT_FINISHED: "finish the download, or start it again",
    WEB_PAGE: "download the file itself: on the hub, its address has /resolve/ and not /blob/",
    OTHER_NAME: "give the file the name that fits its content",
    EMPTY_TENSORS: "save it again with its weights gathered (DeepSpeed: "
    "stage3_gather_16bit_weights_on_model_save), or take them from its global_step folder",
}
_SUMMARY_FACTS = ("step", "epoch", "learning_rate", "examples_seen")
_VERDICT = ("complete", "verified", "resumable", "problems", "obstacles", "notes", "advice")
_FINDINGS = (
    "aliases", "files", "format", "step_counts", "epoch_counts", "epoch_ratio",
    "next_learning_rate", "loss", "rng", "data_store", "saved_at", "num_parameters",
    "parameters_by_group", "optimizer_moments", "tensors_by_group", "num_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The result of inspecting one checkpoint.

    `facts` has the keys of sftctl's manifest. A fact that the format does not store is None or
    missing. A problem is damage, or code that a pickle wants to run. An obstacle is the reason why
    an undamaged checkpoint can't be resumed on this machine now.
    """

    path: Path
    format: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    step_counts: str | None = None  # the unit of the step, such as "optimizer updates"
    epoch_counts: str | None = None  # the unit of the epoch, such as "epochs done"
    next_learning_rate: float | None = None
    loss: float | None = None  # of the last step
    rng: Mapping[str, Any] | None = None
    data_store: Mapping[str, Any] | None = None  # path, fits (None: not checked), why
    saved_at: float | None = None  # seconds since 1970
    num_bytes: int = 0  # on disk
    files: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # file -> num_bytes, sha256 or None
    tensors: Tensors = field(default_factory=dict)  # names begin with `model.` or `optimizer.`
    aliases: Mapping[str, str] = field(default_factory=dict)  # name of a tied tensor -> stored name
    complete: bool = True  # every file and tensor exists, with the right size
    verified: bool | None = None  # all checksums match; None: not checked, or a file has none
    problems: Sequence[str] = field(default_factory=list)  # "file: what is wrong"
    obstacles: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    advice: str | None = None  # the command or call that continues from this checkpoint
    remedies: Mapping[str, str] = field(default_factory=dict)  # problem -> what to do about it
    checkpoints: "Sequence[Inspection] | None" = None  # all checkpoints, if this is a run; by step
    final: Mapping[str, Any] | None = None  # facts about final/, if this is a run

    @property
    def is_ours(self) -> bool:
        """Whether sftctl wrote this checkpoint."""
        return self.format.startswith("sftctl")

    @property
    def resumable(self) -> bool:
        """Whether `sftctl resume` can continue from this checkpoint on this machine now."""
        return not self.problems and not self.obstacles

    @property
    def damage(self) -> list[str]:
        """The problems of all inspected checkpoints, of the store and of final/, with
        full paths.
        """
        inspected = self.checkpoints if self.checkpoints is not None else [self]
        found = [_located(one.path, problem) for one in inspected for problem in one.problems]
        if self.data_store is not None and self.data_store.get("verified") is False:
            found.append(f"{self.data_store['path']}: {self.data_store['why']}")
        final = self.final or {"problems": []}
        return found + [f"{final['path']}/{problem}" for problem in final["problems"]]

    @property
    def damage_hint(self) -> str:
        """What to do about `damage`."""
        if self.data_store is not None and self.data_store.get("verified") is False:
            return "put the store back, or prepare the data again"
        if self.final and self.final["problems"] and not self.problems:
            return "`sftctl resume` writes the final model again; chat and export use a checkpoint"
        if self.is_ours:
            return self.advice or "put it back from a copy, or use another checkpoint"
        if self.problems and self.problems[0] in self.remedies:
            return self.remedies[self.problems[0]]
        for phrase, remedy in _REMEDIES.items():
            if any(phrase in problem for problem in self.damage):
                return remedy
        return "copy or download it again"

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in weights_in(self.tensors).values())

    @property
    def parameters_by_group(self) -> dict[str, int]:
        """The number of parameters in each component of the model, the largest first."""
        groups: Counter[str] = Counter()
        for name, tensor in weights_in(self.tensors).items():
            groups[component_of(name)] += tensor.num_elements
        return dict(groups.most_common())

    @property
    def tensors_by_group(self) -> dict[str, dict[str, int]]:
        """The number of tensors and bytes by the first part of their names: model, optimizer."""
        groups: dict[str, dict[str, int]] = {}
        for name, tensor in self.tensors.items():
            group = groups.setdefault(name.partition(".")[0], {"num_tensors": 0, "num_bytes": 0})
            group["num_tensors"] += 1
            group["num_bytes"] += tensor.num_bytes
        return groups

    @property
    def optimizer_moments(self) -> dict[str, int]:
        """The number of tensors for each moment of the optimizer, such as `exp_avg`."""
        kinds = (name.rpartition(".")[2] for name in self.tensors if name.startswith("optimizer."))
        counts = Counter(kinds)
        return {kind: counts[kind] for kind in _MOMENTS if counts[kind]}

    @property
    def epoch_ratio(self) -> float | None:
        """The finished part of the current epoch, from 0 to 1; None: unknown."""
        steps, done = self.facts.get("steps_per_epoch"), self.facts.get("step_in_epoch")
        if steps and done is not None:
            return float(done / steps)
        epoch = self.facts.get("epoch")
        return epoch % 1 if isinstance(epoch, float) else None

    def summary(self) -> dict[str, Any]:
        """The values for one row in the list of a run's checkpoints."""
        return {
            "name": self.path.name,
            **{key: self.facts.get(key) for key in _SUMMARY_FACTS},
            **{key: getattr(self, key) for key in ("loss", "num_bytes", "saved_at", *_VERDICT)},
        }

    def to_json(self) -> dict[str, Any]:
        """All values for `--json`: the manifest's keys (None if unknown), facts and verdict."""
        values = {key: self.facts.get(key) for key in MANIFEST_KEYS}
        values |= {key: getattr(self, key) for key in (*_FINDINGS, *_VERDICT)}
        values["path"] = str(self.path)
        if self.checkpoints is not None:
            values["checkpoints"] = [checkpoint.summary() for checkpoint in self.checkpoints]
            values["final"] = self.final
        return values


def weights_in(tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors whose name starts with `model.`, without this prefix. Tied tensors count once."""
    places: set[object] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.parts[:1]
        if name.startswith("model.") and not (place and place in places):
            found[name.removeprefix("model.")] = tensor
            places.add(place)
    return found


def weights_dtype(tensors: Tensors) -> str | None:
    """The dtype of most bytes of the weights.

    Floats of 16, 32 or 64 bits have torch's name, such as bfloat16. Other types have the name in
    the file.
    """
    sizes: Counter[str] = Counter()
    for tensor in weights_in(tensors).values():
        sizes[tensor.dtype] += tensor.num_bytes
    largest = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    return NUMBER_TYPES[largest].torch if largest in _FLOATS else largest


def component_of(name: str) -> str:
    """The component that a parameter belongs to, such as `embedding` or `experts`; else `other`."""
    found = (part for part, pattern in _COMPONENTS.items() if pattern.search(name))
    return next(found, "other")


def _located(path: Path, problem: str) -> str:
    """A problem with its full path.

    If the problem starts with a file name and a colon, the file is in the folder `path`, or is
    `path` itself. If it starts with `../`, the file is next to the folder. Any other problem is
    about `path` as a whole.
    """
    if ": " not in problem:
        return f"{path}: {problem}"
    if problem.startswith("../"):
        return str(path.parent / problem.removeprefix("../"))
    return str((path.parent if path.is_file() else path) / problem)
