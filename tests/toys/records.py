"""Run directories as a run leaves them, made in an instant: only their numbers are made up."""

import math
from pathlib import Path
from typing import Any

from sftctl.config.load import config_to_toml, load_config
from sftctl.jsonio import dump_line, dump_pretty
from tests.toys.metrics import step_metrics

CREATED = 1_790_000_000.0


def toy_run(folder: Path, num_steps: int, name: str = "run", **overrides: object) -> Path:
    """A run of `num_steps` that was stopped half-way and resumed, with three samples' replies."""
    run = folder / name
    run.mkdir()
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    config = load_config(None, {"model.name": "tiny"} | values)
    (run / "config.toml").write_text(config_to_toml(config))
    (run / "run.json").write_bytes(dump_pretty({"run_id": "x", "created": CREATED}))
    write_lines(run / "metrics.jsonl", [metrics(step) for step in range(1, num_steps + 1)])
    write_lines(run / "events.jsonl", events(num_steps))
    return run


def write_lines(path: Path, values: list[Any]) -> None:
    path.write_bytes(b"".join(map(dump_line, values)))


def metrics(step: int) -> dict[str, Any]:
    """A falling, trembling loss, a spike of the gradient, some waiting."""
    one = step_metrics(step, loss=1.2 + 3 * math.exp(-step / 400) + 0.3 * math.sin(step * 7.1) ** 3)
    values = {name: getattr(one, name) for name in one.__slots__}
    norm = 0.8 + 0.5 * abs(math.sin(step * 1.7)) + (40 if step == 700 else 0)
    rate = 1e-3 * (0.55 + 0.45 * math.cos(math.pi * step / 3000))
    wait = 0.001 + 0.01 * (step % 97 == 0)
    return values | {"grad_norm": norm, "learning_rate": rate, "data_wait_s": wait}


def events(num_steps: int) -> list[dict[str, Any]]:
    half = num_steps // 2
    lost = {"event": "evaluation", "validation_loss": 9.0, "num_target_tokens": 9}
    told: list[dict[str, Any]] = [
        {"event": "started", "step": 0, "num_parameters": 212_352, "total_steps": num_steps},
        *(_validated(step) for step in range(0, half + 1, max(1, num_steps // 8))),
        lost | {"step": half + 2},
        {"event": "save_failed", "step": half, "error": "no room"},
        {"event": "stopped", "step": half, "signal": "SIGTERM"},
        {"event": "resumed", "step": half, "checkpoint": f"step-{half:08}"},
        _validated(num_steps),
        *(sample(step, f"{step} is a reply") for step in (0, half, num_steps)),
        {"event": "finished", "step": num_steps},
    ]
    return [event | {"time": CREATED + number} for number, event in enumerate(told)]


def _validated(step: int) -> dict[str, Any]:
    loss = 1.4 + 2.9 * math.exp(-step / 450)
    return {"event": "evaluation", "step": step, "validation_loss": loss, "num_target_tokens": 90}


def sample(step: int, reply: str) -> dict[str, Any]:
    fields = {"prompt": "user: the capital?", "reply": reply, "reference": "It is Paris."}
    return {"event": "sample", "step": step} | fields
