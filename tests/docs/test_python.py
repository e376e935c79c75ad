"""The code of docs/python.md runs as it is written, in its order."""

import runpy
from pathlib import Path

import pytest

from tests.toys.docs import chats, said
from tests.toys.docs.pages import DOCS_FOLDER, blocks_of

RUN = """
output_dir = "run"
[model]
name = "tiny"
[data]
path = "store"
[train]
batch_size = 2
max_steps = 2
"""


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chats(Path("chats.jsonl"), num_rows=60)
    said("prepare-data", "chats.jsonl", "--output", "store")
    Path("run.toml").write_text(RUN, encoding="utf-8")
    blocks = blocks_of((DOCS_FOLDER / "python.md").read_text("utf-8"))
    Path("page.py").write_text("\n".join(blocks), encoding="utf-8")
    names = runpy.run_path("page.py")
    assert names["example"].input_ids.shape == names["example"].loss_mask.shape
    assert len(names["examples"]) == 4
    assert names["summary"].status == "finished"
    assert (Path("run") / "final" / "model.safetensors").is_file()
