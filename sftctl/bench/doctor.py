"""Describes this machine and its packages, and tests that resume is exact on this machine."""

import platform
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sftctl import __version__
from sftctl.bench.selftest import SelfTest, self_test
from sftctl.environment import cache_folder
from sftctl.machine import Machine, load_average, multiplies_bfloat16, processor_name
from sftctl.model.onednn import product
from sftctl.tracking import status
from sftctl.world import choose_device

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "peft")
_OPTIONAL = ("wandb", "tensorboard", "bitsandbytes", "zstandard", "pyarrow", "trl")
_MEASURED_S = 0.3
_SIZE = 1024  # rows and columns of the largest matrices on a CPU
_SIZE_GPU = 4096


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `sftctl doctor` shows."""

    versions: dict[str, str]
    optional: dict[str, str | None]  # None: not installed
    processor: str
    instructions: str  # torch's name for the instruction set
    has_bfloat16: bool | None  # whether the processor multiplies bfloat16; None: unknown
    usable_cores: int
    cpu_quota_cores: float | None
    num_threads: int
    load: float | None  # load average of the last minute
    ram_free_bytes: int | None
    shm_free_bytes: int | None
    disk_free_bytes: dict[str, int]
    open_file_limit: int
    process_limit: int | None
    device: str  # the device of `--device auto`
    gpus: list[dict[str, Any]]
    nccl: bool
    flash_attention: bool
    flops_per_s: dict[str, float]  # dtype -> rate of matrix products
    fastest_dtype: str
    self_test: SelfTest

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Diagnosis:
    """Collect all facts, measure the speed, and run the self-test. Takes about 20 seconds."""
    status.doing("measuring matrix products")
    machine, device = Machine.here(), choose_device("auto")
    rates = {
        name: rate
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        if (rate := _flops_per_s(device, dtype))
    }
    return Diagnosis(
        versions={"sftctl": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES if _installed(name)},
        optional={name: _installed(name) for name in _OPTIONAL},
        processor=processor_name(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        has_bfloat16=multiplies_bfloat16(),
        usable_cores=machine.usable_cores,
        cpu_quota_cores=machine.cpu_quota_cores,
        num_threads=torch.get_num_threads(),
        load=load_average(),
        ram_free_bytes=machine.ram_free_bytes,
        shm_free_bytes=machine.shm_free_bytes,
        disk_free_bytes=_disks(),
        open_file_limit=machine.open_file_limit,
        process_limit=machine.process_limit,
        device=device.type,
        gpus=_gpus(),
        nccl=torch.distributed.is_available() and torch.distributed.is_nccl_available(),
        flash_attention=torch.backends.cuda.is_flash_attention_available(),
        flops_per_s=rates,
        fastest_dtype=max(rates, key=lambda name: rates[name]),
        self_test=self_test(),
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disks() -> dict[str, int]:
    """Free bytes for runs (in the working directory) and for the cache of stores."""
    places = {"runs": Path.cwd(), "cache": cache_folder()}
    found = {}
    for name, place in places.items():
        nearest = next(path for path in (place, *place.parents) if path.exists())
        found[name] = shutil.disk_usage(nearest).free
    return found


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gpus.append(
            {
                "name": about.name,
                "memory_bytes": about.total_memory,
                "compute_capability": f"{about.major}.{about.minor}",
                "bfloat16": torch.cuda.is_bf16_supported(),
            }
        )
    return gpus


def _flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The rate of the fastest matrix product in 0.3 seconds. At least one product is computed.

    The first product is small, because products of bfloat16 are very slow on some processors.
    """
    best, size = 0.0, 128
    started = time.perf_counter()
    largest = _SIZE if device.type == "cpu" else _SIZE_GPU
    while True:
        left = torch.full((size, size), 0.5, device=device, dtype=dtype)
        asked = time.perf_counter()
        product(left, left)[0, 0].item()  # `item` waits until the product is done
        best = max(best, 2 * size**3 / (time.perf_counter() - asked))
        if time.perf_counter() - started > _MEASURED_S:
            return best
        size = min(2 * size, largest)
