"""Read the data for `sftctl init`: facts about it, suggested settings, and the plan of a run."""

import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.config.load import toml_value
from sftctl.config.schema import RunConfig
from sftctl.data.example_text import shown_examples
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.store import TokenStore
from sftctl.model.presets import is_preset
from sftctl.tracking import status
from sftctl.train.preflight.dry_run import RunPlan, plan_run
from sftctl.train.preflight.inputs import tokenizer_of
from sftctl.words import counted

_ANY_LENGTH = 1 << 20
_TAGS = re.compile(r"</?[a-z_]+>")  # tags that a template writes, such as <think>
_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_COVERED = 0.99  # the share of examples that max_seq_len must not cut
_READ = 200  # examples whose letters are counted
_STEPS_WANTED = 100  # in an epoch, if there are enough examples
_SCRIPTS = {
    "CJK": "Chinese or Japanese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese",
    "HANGUL": "Korean", "LATIN": "Latin letters", "CYRILLIC": "Cyrillic", "ARABIC": "Arabic",
    "DEVANAGARI": "Hindi", "GREEK": "Greek", "THAI": "Thai", "HEBREW": "Hebrew",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Facts about the data, suggested settings for it, and the plan of the run."""

    manifest: StoreManifest  # prepared without a maximum length
    lengths: npt.NDArray[np.integer]  # (N,) tokens of each example
    scripts: dict[str, float]  # script -> its share of the letters
    config: RunConfig
    cut_ratio: float  # the share of examples that the suggested maximum length cuts
    plan: RunPlan

    @property
    def tools(self) -> str:
        """Whether the rows have tools, and whether the template renders them."""
        lost = self.manifest.rows_dropped.get("tools_not_rendered", 0)
        if lost:
            return f"the chat template does not render the tools of {counted(lost, 'row')}"
        has_tools = any("tools" in source.columns_used for source in self.manifest.sources)
        return "rendered by the chat template" if has_tools else "none in the rows"

    @property
    def shapes(self) -> str:
        """The rows of each shape, such as `alpaca 900, messages 100`."""
        shapes = sum((Counter(source.shapes) for source in self.manifest.sources), Counter())
        return ", ".join(f"{name} {rows:,}" for name, rows in shapes.items())

    def to_json(self, output: Path) -> dict[str, Any]:
        """What `init --json` prints."""
        config, manifest = self.config, self.manifest
        return {
            "config": str(output),
            "rows_read": manifest.rows_read,
            "rows_kept": manifest.rows_kept,
            "rows_dropped": manifest.rows_dropped,
            "shapes": self.shapes,
            "scripts": self.scripts,
            "tools": self.tools,
            "length_quantiles": manifest.length_quantiles,
            "max_seq_len": config.data.max_seq_len,
            "cut_ratio": self.cut_ratio,
            "batch_size": config.train.batch_size,
            "epochs": config.train.epochs,
            "total_steps": self.plan.total_steps,
            "memory_bytes": self.plan.memory.total_bytes,
            "time_s": self.plan.time_s,
        }


def look_at(config: RunConfig, on_progress: Callable[[Progress], None]) -> Look:
    """Prepare all of `data.path` in a temporary folder, choose settings, and plan the run.

    The plan prepares the data again with these settings, in the cache, where the run finds it.
    Raises DataError if no row can be used.
    """
    status.doing("reading the data")
    tokenizer = tokenizer_of(config)
    with tempfile.TemporaryDirectory(prefix="sftctl-init-") as folder:
        data = replace(config.data, max_seq_len=_ANY_LENGTH)
        store = Path(folder, "store")
        inputs = [Path(str(config.data.path))]
        manifest = prepare_store(inputs, store, tokenizer, data, (), on_progress).manifest
        opened = TokenStore.open(store)
        lengths = np.array(opened.lengths)
        scripts = _scripts(opened)
    max_seq_len = suggested_length(lengths)
    chosen = replace(
        config,
        data=replace(
            config.data, max_seq_len=max_seq_len, val_fraction=0.05 if len(lengths) >= 100 else 0.0
        ),
        train=replace(
            config.train,
            batch_size=_batch_size(len(lengths)),
            epochs=_epochs(len(lengths), preset=is_preset(config.model.name)),
        ),
    )
    cut = float(np.mean(lengths > max_seq_len))
    return Look(manifest, lengths, scripts, chosen, cut, plan_run(chosen))


def suggested_length(lengths: npt.NDArray[np.integer]) -> int:
    """The smallest value of `_LENGTHS` that keeps 99% of the examples complete."""
    needed = float(np.quantile(lengths, _COVERED, method="inverted_cdf"))
    return next((length for length in _LENGTHS if length >= needed), _LENGTHS[-1])


def _batch_size(num_examples: int) -> int:
    """A power of two from 2 to 32 that leaves about a hundred steps in an epoch."""
    wanted = max(2, min(32, num_examples // _STEPS_WANTED))
    return 1 << (wanted.bit_length() - 1)


def _epochs(num_examples: int, *, preset: bool) -> int:
    """The number of epochs: more for a small data set, and twice as many for random weights."""
    few = 3 if num_examples < 10_000 else 2 if num_examples < 100_000 else 1
    return 2 * few if preset else few


def _scripts(store: TokenStore) -> dict[str, float]:
    """Each script's share of the letters in the first examples, the most frequent first."""
    counts: Counter[str] = Counter()
    specials = store.load_tokenizer().special_texts
    for runs in shown_examples(store, _READ):
        for text in (text for text, is_trained in runs if is_trained):
            for special in specials:
                text = text.replace(special, "")
            text = _TAGS.sub("", text)
            for letter in text:
                if letter.isalpha():
                    word = unicodedata.name(letter, "?").partition(" ")[0]
                    counts[_SCRIPTS.get(word, "other letters")] += 1
    total = sum(counts.values()) or 1
    return {name: n / total for name, n in counts.most_common() if n / total >= 0.01}


def commented_toml(look: Look, given: Mapping[str, str | None]) -> str:
    """A short run.toml with a reason for each value. `given` has the values that the user typed."""
    config, lengths, model = look.config, look.lengths, str(given["model.name"])
    start = "random weights" if is_preset(model) else "pretrained weights"
    longest = int(lengths.max())
    kept = f"{look.manifest.rows_kept:,} of {counted(look.manifest.rows_read, 'row')} can be used"
    lines = [
        "# Written by `sftctl init`. `sftctl train --print-config` shows every key.",
        "",
        "[model]",
        f"name = {toml_value(model)}  # {start}",
        *_line("tokenizer", given["model.tokenizer"]),
        "",
        "[data]",
        f"path = {toml_value(given['data.path'])}  # {kept}; {look.shapes}",
        *_line("chat_template", given["data.chat_template"]),
        f"max_seq_len = {config.data.max_seq_len}  # the longest example has {longest:,} tokens; "
        f"{look.cut_ratio:.1%} of them are cut",
    ]
    if config.data.val_fraction:
        share = config.data.val_fraction
        lines.append(f"val_fraction = {share}  # of the rows, held out to measure progress")
    rate = look.plan.config["optim"]["learning_rate"]
    lines += [
        "",
        "[optim]",
        f"learning_rate = {rate}  # the peak; the usual one for {start}",
        "",
        "[train]",
        f"epochs = {config.train.epochs}  # {look.plan.total_steps:,} steps in all",
        f"batch_size = {config.train.batch_size}  # examples a step, over all ranks",
        "",
        "[checkpoint]",
        "save_interval = 100  # steps; the last step is always saved",
        "",
    ]
    return "\n".join(lines)


def _line(key: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{key} = {toml_value(value)}"]
