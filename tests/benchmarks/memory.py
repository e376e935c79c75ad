"""Memory: the estimate of --dry-run next to the peak of a run, and whether a long run stays flat.

`--only memory`: every case is a run of six steps on Alpaca, batches of 8. A run with saves keeps a
copy of its state. `--only flat-memory`: every case is a run of `--steps`, with evaluations and
saves between.
"""

import json
import sys
from pathlib import Path

from tests.benchmarks.training import run, smollm2, store_of

NUM_STEPS = 6
SMOLLM2 = "SmolLM2"
TWO = "--nproc-per-node 2"
CHECKPOINTING = "--set train.activation_checkpointing=true"
CASES = [
    *(f"{model} --dtype {d}" for model in ("tiny", "small") for d in ("float32", "bfloat16")),
    *(
        f"minimind-3 --dtype {dtype} {options}".strip()
        for dtype in ("float32", "bfloat16")
        for options in ("", CHECKPOINTING, TWO, f"{TWO} --strategy fsdp", "--save-interval 2")
    ),
    *(f"{SMOLLM2} --dtype {dtype}" for dtype in ("float32", "bfloat16")),
]


def told_and_measured(
    data: Path, tokenizer: str, folder: Path, cases: list[str]
) -> list[list[str]]:
    """A row for each case: what was told, the peak of the rank with most, and their ratio."""
    rows, stores = [], dict[str, Path]()
    for number, case in enumerate(cases):
        name, *options = case.split()
        model, reader = model_and_tokenizer(name, tokenizer)
        if reader not in stores:
            (folder / f"data-{number}").mkdir()
            stores[reader] = store_of(data, reader, folder / f"data-{number}")
        command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
        command += ["--data", stores[reader], "--batch-size", 8, "--max-steps", NUM_STEPS]
        command += ["--device", "cpu"]
        command += ["--save-interval", 0, "--output-dir", folder / str(number), *options]
        told = json.loads(run([*command, "--dry-run", "--json"]))["memory"]["total_bytes"]
        run(command)
        lines = (folder / str(number) / "metrics.jsonl").read_text().splitlines()
        peak = max(json.loads(line)["peak_memory_bytes"] for line in lines)
        rows.append([case, f"{told / 1e6:,.0f} MB", f"{peak / 1e6:,.0f} MB", f"{told / peak:.2f}"])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def model_and_tokenizer(name: str, tokenizer: str) -> tuple[str, str]:
    """The model and the tokenizer of a case: SmolLM2 has its own."""
    return (str(smollm2()), str(smollm2())) if name == SMOLLM2 else (name, tokenizer)


FLAT = (
    "small --dtype float32",
    "small --dtype bfloat16",
    "minimind-3 --dtype bfloat16",
    f"{SMOLLM2} --dtype bfloat16 --batch-size 2",
)
SETTLED = 20
"""The step from which on memory should not grow: the shapes of passes have occurred by then."""


def resident_over_steps(
    data: Path, tokenizer: str, folder: Path, steps: int, cases: list[str], picture: Path | None
) -> tuple[list[str], list[list[str]]]:
    """A row for each case: resident memory at five steps, and the last one over that of step 20.

    The steps are not those of a save or an evaluation. A save holds a copy of the state while it
    writes. `picture` is an SVG file for the memory of all steps.
    """
    every = max(1, steps // 6)
    shown = [SETTLED, *(round(steps * part) - 1 for part in (0.25, 0.5, 0.75)), steps - 1]
    rows, curves = [], dict[str, list[int]]()
    for number, case in enumerate(cases):
        name, *options = case.split()
        model, reader = model_and_tokenizer(name, tokenizer)
        run_dir = folder / str(number)
        command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
        command += ["--data", data, "--tokenizer", reader, "--max-seq-len", 512]
        command += ["--batch-size", 8, "--epochs", 100, "--max-steps", steps, *options]
        command += ["--device", "cpu"]
        command += ["--set", "data.val_fraction=0.03", "--eval-interval", every]
        run([*command, "--save-interval", every, "--output-dir", run_dir])
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        curves[case] = resident = [line["memory_bytes"] for line in lines]
        sizes = [f"{resident[step - 1] / 1e6:,.0f} MB" for step in shown]
        rows.append([case, *sizes, f"{resident[shown[-1] - 1] / resident[SETTLED - 1]:.2f}"])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
        if picture is not None:
            picture.write_text(_picture(curves))
    return ["run", *(f"step {step}" for step in shown), "last / first"], rows


WIDTH, HEIGHT, EDGE = 800, 100, 60  # of the field of one curve


def _picture(curves: dict[str, list[int]]) -> str:
    """An SVG picture with a field for each run: resident memory by step, from 0 to its peak."""
    fields = [_field(case, values) for case, values in curves.items()]
    step = HEIGHT + 40
    drawn = [
        f'<g transform="translate(0 {step * n})">{field}</g>' for n, field in enumerate(fields)
    ]
    style = 'font-family="sans-serif" font-size="12" fill="gray"'
    size = f'viewBox="0 0 {WIDTH} {step * len(fields)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, *drawn, "</svg>\n"])


def _field(case: str, values: list[int]) -> str:
    """One run: its name above, the peak and 0 at the left, its steps below."""
    top, bottom, last = 20, 20 + HEIGHT, len(values) - 1
    x = [EDGE + (WIDTH - EDGE) * i / max(1, last) for i in range(len(values))]
    y = [bottom - HEIGHT * value / max(values) for value in values]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return "\n".join(
        [
            f'<text x="{EDGE}" y="14">{case}</text>',
            f'<text x="0" y="{top + 4}">{max(values) / 1e9:.2f} GB</text>',
            f'<text x="0" y="{bottom + 4}">0</text>',
            f'<text x="{EDGE}" y="{bottom + 14}">step 1</text>',
            f'<text x="{WIDTH}" y="{bottom + 14}" text-anchor="end">step {len(values)}</text>',
            f'<path d="M{EDGE} {top} V{bottom} H{WIDTH}" fill="none" stroke="gray"/>',
            f'<polyline points="{points}" fill="none" stroke="teal"/>',
        ]
    )
