"""The tutorial, typed as it stands: a fresh clone, a new environment, a new home."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.toys.docs.pages import REPOSITORY, SHOWN_FILE, blocks_of

pytestmark = pytest.mark.real
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
LONGEST_WALK_S = 3600


def script() -> str:
    """What a reader does, top to bottom: files are written, what follows `$ ` is typed."""
    steps = ["set -e"]
    for block in blocks_of(TUTORIAL.read_text("utf-8")):
        if name := SHOWN_FILE.match(block):
            shown = block if name[1].endswith(".py") else block[name.end() :]
            steps.append(f"cat > {name[1]} <<'END'\n{shown}END")
        typed = re.findall(r"^\$ (.*)", block.replace("\\\n", " "), re.MULTILINE)
        steps += [line.replace("git clone URL", f"git clone {REPOSITORY}") for line in typed]
    return "\n".join(steps) + "\n"


def test_the_tutorial_as_it_stands_goes_from_a_clone_to_a_model_that_knows_its_name(
    tmp_path: Path,
) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository to clone")
    environment = {"HOME": str(tmp_path), "PATH": os.defpath + os.pathsep + os.environ["PATH"]}
    walk = subprocess.run(
        ["bash"],
        input=script(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=LONGEST_WALK_S,
    )
    assert walk.returncode == 0, f"{walk.stdout[-2000:]}\n{walk.stderr[-2000:]}"
    said = walk.stdout.splitlines()
    assert "9 and 14" in said
    assert "The capital of is aThe capital of is aThe capital of." in said
    assert said[-1] == "Your helper."
