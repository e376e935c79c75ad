"""`make bench`: every table of docs/benchmarks.md and docs/measured/speed.md, as medians.

Needs a quiet machine and the data set and tokenizer named by --alpaca and --tokenizer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import adapters, planning, training
from tests.benchmarks.checkpoints import resuming, saving
from tests.benchmarks.generating import generating
from tests.benchmarks.growth import time_by_tokens
from tests.benchmarks.inspecting import inspecting
from tests.benchmarks.loader import against_training, against_trl
from tests.benchmarks.memory import CASES, FLAT, resident_over_steps, told_and_measured
from tests.benchmarks.merging import HEAD, merges
from tests.benchmarks.precision import validation_losses
from tests.benchmarks.prepare import preparing, preparing_memory
from tests.benchmarks.prepare_templates import preparing_by_template
from tests.benchmarks.starting import starting
from tests.benchmarks.utilisation import utilisation
from tests.benchmarks.waiting import rates_by_setting

SHARED = Path(__file__).parents[3] / "shared" / "data"


def main() -> None:
    """Measure the chosen tables and print them as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=[*TABLES], help="one table")
    parser.add_argument("--alpaca", type=Path, default=SHARED / "alpaca_en_demo.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "minimind_tokenizer")
    downloads = Path(os.environ.get("SFTCTL_REAL", ".real"))
    parser.add_argument("--downloads", type=Path, default=downloads, help="what pip fetched")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="in place of SmolLM2: for adapters")
    parser.add_argument("--steps", type=int, help="of each training, the first not counted")
    parser.add_argument("--templates", type=Path, help="a folder of .jinja files to prepare with")
    parser.add_argument("--other", type=Path, help="another checkout to prepare with in turns")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--case", default="", help="of merges, memory: rows whose name has it")
    parser.add_argument("--picture", type=Path, help="of flat-memory: an SVG file to write")
    options = parser.parse_args()
    for name, make in TABLES.items():
        if options.only in (None, name):
            print(f"{name}\n\n{make(options)}", flush=True)


def start_table(options: argparse.Namespace) -> str:
    """Time to print help, and to the first step of a training."""
    return table(["command", f"median of {3 * options.rounds}"], starting(3 * options.rounds))


def training_table(options: argparse.Namespace, batch_size: int) -> str:
    """minimind-3 on Alpaca, with the same examples and first weights for all."""
    steps = options.steps or (5 if batch_size == 8 else 3)
    contenders = training.against_all("minimind-3", batch_size, steps, [*training.RIVALS])
    return compared_table(options, contenders, None)


def smollm2_table(options: argparse.Namespace) -> str:
    """SmolLM2-135M. Its vocabulary of 49,152 makes the head expensive."""
    model = str(training.smollm2())
    contenders = training.against_all(model, 8, options.steps or 3, [*training.RIVALS])
    return compared_table(options, contenders, model)


def ranks_table(options: argparse.Namespace) -> str:
    """One rank and two ranks on the same cores."""
    return compared_table(options, training.on_ranks(options.steps or 3), None)


def compared_table(
    options: argparse.Namespace, contenders: dict[str, training.Contender], tokenizer: str | None
) -> str:
    """Measure all contenders on a store of the full data set."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = training.store_of(options.alpaca, tokenizer or str(options.tokenizer), folder)
        found = training.alternating(contenders, store, folder, options.rounds)
    return table(*training.compared(found))


def planning_table(options: argparse.Namespace) -> str:
    """How evenly work is divided among ranks, and how long planning takes."""
    with tempfile.TemporaryDirectory() as name:
        store = training.store_of(options.alpaca, str(options.tokenizer), Path(name))
        head = ["micro_batch_tokens", "ranks", "mean/max cost", "real tokens of those processed"]
        balance = table(head, planning.balance(store))
    of_epoch = ["examples", "planning the epoch", "memory for it"]
    of_step = ["cut of a step at its start", "at its end"]
    return balance + "\n" + table([*of_epoch, *of_step], planning.by_size())


def growth_table(options: argparse.Namespace) -> str:
    """The time of a step by its number of tokens."""
    with tempfile.TemporaryDirectory() as name:
        store = training.store_of(options.alpaca, str(options.tokenizer), Path(name))
        return table(*time_by_tokens(store, options.rounds))


def waiting_table(options: argparse.Namespace) -> str:
    """Training beside busy processes, by how threads wait."""
    with tempfile.TemporaryDirectory() as name:
        store = training.store_of(options.alpaca, str(options.tokenizer), Path(name))
        return table(*rates_by_setting(store, options.rounds, options.steps or 3))


def utilisation_table(options: argparse.Namespace) -> str:
    """The share of the machine's matrix-product rate, and a profile."""
    text = ""
    with tempfile.TemporaryDirectory() as name:
        store = training.store_of(options.alpaca, str(options.tokenizer), Path(name))
        for batch_size in (8, 32):
            rows, sentence = utilisation(store, batch_size, options.steps or 40 // batch_size)
            text += sentence + "\n" + table(["of a step", "time"], rows)
    return text


def prepare_tables(options: argparse.Namespace) -> str:
    """ShareGPT, compared with TRL and datasets.map; and memory for two sizes of input."""
    with tempfile.TemporaryDirectory() as name:
        rates = preparing(options.downloads, Path(name))
        memory = preparing_memory(options.downloads, Path(name))
    compared = table(["", "MB/s of its input", "times as fast"], rates)
    return compared + "\n" + table(["input", "peak memory", "MB/s"], memory)


def templates_table(options: argparse.Namespace) -> str:
    """ShareGPT with the tokenizer's own template and those of --templates."""
    templates = options.templates or options.downloads / "templates"
    with tempfile.TemporaryDirectory() as name:
        made = preparing_by_template(
            *(options.downloads, options.tokenizer, templates, options.other, options.rounds),
            Path(name),
        )
    return table(*made)


def checkpoints_table(options: argparse.Namespace) -> str:
    """How long the loop waits for a save, and a user for a resume."""
    with tempfile.TemporaryDirectory() as name:
        store = prepare(options, Path(name))
        rows = saving(store, Path(name), options.rounds) + resuming(Path(name), options.rounds)
        return table(["", f"median of {options.rounds}"], rows)


def loader_table(
    options: argparse.Namespace, measured: Callable[[Path, int], tuple[list[str], list[list[str]]]]
) -> str:
    """Batches a second, on the full file."""
    with tempfile.TemporaryDirectory() as name:
        rows = len(json.loads(options.alpaca.read_text()))
        whole = argparse.Namespace(**{**vars(options), "examples": rows})
        return table(*measured(prepare(whole, Path(name)), options.rounds))


def prepare(options: argparse.Namespace, folder: Path) -> Path:
    """A store of `examples` rows, evenly spaced in the file, because its first rows are longer."""
    rows = json.loads(options.alpaca.read_text())
    rows = [rows[i * len(rows) // options.examples] for i in range(options.examples)]
    (folder / "rows.json").write_text(json.dumps(rows))
    command = [*sftctl("prepare-data"), str(folder / "rows.json"), "--max-seq-len", "512"]
    command += ["--tokenizer", str(options.tokenizer), "--output", str(folder / "store")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "store"


def sftctl(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "sftctl", *arguments]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def memory_table(options: argparse.Namespace) -> str:
    """The estimate of the pre-flight beside the measured peak."""
    with tempfile.TemporaryDirectory() as name:
        cases = [case for case in CASES if options.case in case]
        rows = told_and_measured(options.alpaca, str(options.tokenizer), Path(name), cases)
    return table(["run", "told", "peak RSS", "told / peak"], rows)


def flat_memory_table(options: argparse.Namespace) -> str:
    """Resident memory over a long run."""
    with tempfile.TemporaryDirectory() as name:
        where = options.alpaca, str(options.tokenizer), Path(name)
        cases = [case for case in FLAT if options.case in case]
        made = resident_over_steps(*where, options.steps or 600, cases, options.picture)
        return table(*made)


def precision_table(options: argparse.Namespace) -> str:
    """The validation loss in float32 and in bfloat16."""
    steps = options.steps or 300
    with tempfile.TemporaryDirectory() as name:
        rows = validation_losses(options.alpaca, str(options.tokenizer), Path(name), steps)
    return table([f"seed, {steps} steps", "float32", "bfloat16", "difference"], rows)


def adapters_table(options: argparse.Namespace) -> str:
    """LoRA beside full fine-tuning and other tools; 12 minutes on two quiet cores."""
    model = str(options.model or training.smollm2())
    steps = options.steps or adapters.NUM_STEPS
    measured = {
        name: adapters.with_sizes(contender)
        for name, contender in adapters.contenders(model, steps).items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = training.store_of(options.alpaca, model, folder)
        found = training.alternating(measured, store, folder, options.rounds)
    return f"{table(*adapters.compared(found))}\n{adapters.step_ratio(found)}\n"


def adapters_loss_table(options: argparse.Namespace) -> str:
    """The validation losses of LoRA and full fine-tuning; half an hour on two cores."""
    model = str(options.model or training.smollm2())
    with tempfile.TemporaryDirectory() as name:
        steps = options.steps or adapters.LOSS_STEPS
        return table(*adapters.validation_losses(options.alpaca, model, Path(name), steps))


def merges_table(options: argparse.Namespace) -> str:
    """What the proofs of merges find, on the shortest rows."""
    rows = sorted(json.loads(options.alpaca.read_text()), key=lambda row: len(str(row)))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "short.json"
        file.write_text(json.dumps(rows[: options.examples]))
        return table(HEAD, [*merges(file, Path(name), options.case)])


def inspect_table(options: argparse.Namespace) -> str:
    """Time of inspect-ckpt on ten gigabytes."""
    return table(["", f"median of {options.rounds}"], inspecting(options))


def generate_table(options: argparse.Namespace) -> str:
    """Tokens a second of answers to Alpaca's instructions, for two models."""
    found = generating(
        options.alpaca, options.downloads, options.tokenizer, options.examples, options.tokens,
        options.rounds,
    )  # fmt: skip
    rows, sentences = zip(*found, strict=True)
    head = ["", "tokens/s", "ours / it", "tokens per processor second", "ours / it"]
    return table(head, sum(rows, [])) + "\n" + " ".join(sentences) + "\n"


TABLES: dict[str, Callable[[argparse.Namespace], str]] = {
    "start": start_table,
    "training-8": lambda options: training_table(options, 8),
    "training-32": lambda options: training_table(options, 32),
    "utilisation": utilisation_table,
    "smollm2": smollm2_table,
    "ranks": ranks_table,
    "waiting": waiting_table,
    "memory": memory_table,
    "flat-memory": flat_memory_table,
    "precision": precision_table,
    "planning": planning_table,
    "growth": growth_table,
    "prepare": prepare_tables,
    "prepare-templates": templates_table,
    "checkpoints": checkpoints_table,
    "inspect": inspect_table,
    "adapters": adapters_table,
    "adapters-loss": adapters_loss_table,
    "merges": merges_table,
    "generate": generate_table,
    "loader": lambda options: loader_table(options, against_trl),
    "loader-agreement": lambda options: loader_table(options, against_training),
}

if __name__ == "__main__":
    main()
