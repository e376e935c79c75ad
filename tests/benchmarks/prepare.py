"""prepare-data on ShareGPT: its rate, compared with TRL and datasets.map, and its memory."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.benchmarks.hf_prepare import MAX_LENGTH
from tests.toys.fetched import sharegpt_file, smollm2_file

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "system": "system"}
_MEMORY_SIZES = (100_000_000, 1_000_000_000)


def preparing(downloads: Path, folder: Path) -> list[list[str]]:
    """Rows of the table of rates. The file is ShareGPT unchanged, with its cut end."""
    source, tokenizer = sharegpt_file(downloads), _tokenizer(downloads, folder)
    cores = len(os.sched_getaffinity(0))
    ours = _prepare(source, tokenizer, folder / "store")
    rows = folder / "rows.jsonl"
    num_bytes = _write_messages(source, rows)
    rates = {"sftctl prepare-data": source.stat().st_size / 1e6 / ours["seconds"]}
    for name, way in (("datasets.map", "map"), ("TRL", "trl")):
        command = [sys.executable, "-m", "tests.benchmarks.hf_prepare", way]
        command += [str(rows), str(tokenizer), str(cores)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
        rates[name] = num_bytes / 1e6 / seconds
    first = rates["sftctl prepare-data"]
    return [[name, f"{rate:.1f} MB/s", f"{first / rate:.1f}"] for name, rate in rates.items()]


def preparing_memory(downloads: Path, folder: Path) -> list[list[str]]:
    """Rows of the table of memory: 100 MB and 1 GB of the same rows with changed text."""
    source, tokenizer = sharegpt_file(downloads), _tokenizer(downloads, folder)
    table = []
    for size in _MEMORY_SIZES:
        path = folder / f"{size}.jsonl"
        _write_repeated(source, path, size)
        result = _prepare(path, tokenizer, folder / f"store-{size}")
        rate = size / 1e6 / result["seconds"]
        memory = f"{result['peak_bytes'] / 1e6:.0f} MB"
        table.append([f"{size / 1e6:,.0f} MB", memory, f"{rate:.1f} MB/s"])
        path.unlink()
    return table


def _prepare(source: Path, tokenizer: Path, output: Path) -> dict[str, Any]:
    """Time of the full command, and the peak memory of all its processes together."""
    command = [sys.executable, "-m", "sftctl", "prepare-data", str(source), "--output", str(output)]
    command += ["--tokenizer", str(tokenizer), "--max-seq-len", str(MAX_LENGTH), "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        memory = _MemoryWatch(process.pid)
        memory.start()
        status = process.wait()
        seconds = time.perf_counter() - started
        memory.join()
    if status:
        raise SystemExit(f"prepare-data: exit {status}")
    return {"seconds": seconds, "peak_bytes": memory.peak_bytes}


class _MemoryWatch(threading.Thread):
    """Peak memory of a process and its children; pages that they share count once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._pid = pid

    def run(self) -> None:
        while (held := self._held()) > 0:
            self.peak_bytes = max(self.peak_bytes, held)
            time.sleep(0.2)

    def _held(self) -> int:
        total = 0
        for pid in (self._pid, *_children(self._pid)):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _tokenizer(downloads: Path, folder: Path) -> Path:
    """SmolLM2's tokenizer as a folder, for the tools that do not read .gguf."""
    path = folder / "smollm2"
    if not path.exists():
        load_tokenizer(str(smollm2_file(downloads))).save(path)
    return path


def _whole_rows(source: Path) -> list[dict[str, Any]]:
    """The rows of the array before the place where the file ends."""
    text, scan = source.read_text(encoding="utf-8"), json.JSONDecoder().raw_decode
    rows: list[dict[str, Any]] = []
    position = text.index("{")
    while True:
        try:
            row, position = scan(text, position)
        except json.JSONDecodeError:
            return rows
        rows.append(row)
        position = text.find("{", position)


def _write_messages(source: Path, path: Path) -> int:
    """Write the rows that have an assistant turn, in TRL's shape; returns their bytes."""
    with path.open("w", encoding="utf-8") as file:
        for row in _whole_rows(source):
            turns = row["conversations"]
            if not {turn["from"] for turn in turns} <= _ROLES.keys():
                continue
            messages = [{"role": _ROLES[t["from"]], "content": t["value"]} for t in turns]
            if any(message["role"] == "assistant" for message in messages):
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path.stat().st_size


def _write_repeated(source: Path, path: Path, num_bytes: int) -> None:
    """Repeat the rows, each time with changed text, until the file has the given size."""
    rows, written, times = _whole_rows(source), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            for number, row in enumerate(rows):
                turns = [
                    t | {"value": f"{t['value']} {times}-{number}"} for t in row["conversations"]
                ]
                line = json.dumps({"conversations": turns}, ensure_ascii=False) + "\n"
                written += len(line.encode())
                file.write(line)
                if written >= num_bytes:
                    return
            times += 1
