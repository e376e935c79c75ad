"""The tutorial, typed as it stands: a fresh clone, a new environment, a new home."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.toys.docs.pages import REPOSITORY, SHOWN_FILE, blocks_of

pytestmark = pytest.mark.real
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
LONGEST_WALK_S = 3600


OF_LLAMA_CPP = ("pip install llama-cpp-python", "python3 ask.py")
"""Typed only if llama.cpp is installed; it is not built for this test."""


def script(llama_cpp: Path | None) -> str:
    """What a reader does, top to bottom: files are written, what follows `$ ` is typed.

    `llama_cpp` is a folder with the package of that name.
    """
    steps = ["set -e"]
    for block in blocks_of(TUTORIAL.read_text("utf-8")):
        if name := SHOWN_FILE.match(block):
            shown = block if name[1].endswith(".py") else block[name.end() :]
            steps.append(f"cat > {name[1]} <<'END'\n{shown}END")
        typed = re.findall(r"^\$ (.*)", block.replace("\\\n", " "), re.MULTILINE)
        for line in typed:
            if line == OF_LLAMA_CPP[0] and llama_cpp is not None:
                steps.append(f"export PYTHONPATH={llama_cpp}")
            elif line not in OF_LLAMA_CPP or (line == OF_LLAMA_CPP[1] and llama_cpp is not None):
                steps.append(line.replace("git clone URL", f"git clone {REPOSITORY}"))
    return "\n".join(steps) + "\n"


def installed(folder: Path, *packages: str) -> Path | None:
    """A folder with these packages of this environment; None if one is missing."""
    specs = [importlib.util.find_spec(package) for package in packages]
    for spec in specs:
        if spec is None or spec.origin is None:
            return None
    folder.mkdir()
    for package, spec in zip(packages, specs, strict=True):
        assert spec is not None and spec.origin is not None
        (folder / package).symlink_to(Path(spec.origin).parent)
    return folder


def test_the_tutorial_as_it_stands_goes_from_a_clone_to_a_model_that_knows_its_name(
    tmp_path: Path,
) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository to clone")
    environment = {"HOME": str(tmp_path), "PATH": os.defpath + os.pathsep + os.environ["PATH"]}
    llama_cpp = installed(tmp_path / "of_llama_cpp", "llama_cpp", "diskcache")
    walk = subprocess.run(
        ["bash"],
        input=script(llama_cpp),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=LONGEST_WALK_S,
    )
    assert walk.returncode == 0, f"{walk.stdout[-2000:]}\n{walk.stderr[-2000:]}"
    said = walk.stdout.splitlines()
    assert said.count("9 and 14") == (1 if llama_cpp is None else 2)
    assert "evaluation at step 180: validation loss 1.0" in walk.stderr
    assert said[-1] == "Your helper."
