"""An exported directory is complete, loads in transformers, and has a model card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftctl.config.load import load_config
from sftctl.errors import CheckpointError, ConfigError
from sftctl.runs.card import model_card
from sftctl.runs.directory import RunDir
from sftctl.trained.export import export_model
from sftctl.trained.open import open_trained
from tests.toys.records import toy_run

FILES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def test_everything_is_there_and_loads_in_transformers(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "hf", "float32")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == FILES
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = open_trained(run)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, ours.model(ids).logits)
    assert tokenizer.chat_template == ours.tokenizer.hf.chat_template
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn in model.generation_config.eos_token_id


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_can_be_written_smaller(run: Path, tmp_path: Path, dtype: str) -> None:
    export_model(run, tmp_path / "hf", dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == dtype


def test_large_weights_are_sharded_with_an_index(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "hf", "float32", max_shard_bytes=200_000)
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    assert len(shards) > 1 and set(index["weight_map"].values()) == {one.name for one in shards}
    assert {oct(shard.stat().st_mode)[-3:] for shard in shards} == {"644"}
    sharded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    for name, tensor in open_trained(run).model.state_dict().items():
        assert torch.equal(sharded[name], tensor), name


def card_of(source: Path, folder: Path) -> str:
    export_model(source, folder / "hf", "float32")
    return (folder / "hf/README.md").read_text()


def test_the_card_describes_the_training(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path)
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for line in (
        "| base model | tiny (preset, from random weights) |",
        "| steps | 4 of 4 |",
        "| epochs | 1 of 1 |",
        "| examples seen | 14 |",
        "| rows read | 22 |",
        "| validation examples | 8 |",
        "| sources | toy.jsonl |",
    ):
        assert line in card.splitlines()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| training loss of the last step | {last['loss']:.4f} |" in card
    for name in ("validation loss, first", "validation loss, best", "torch", "sftctl"):
        assert f"| {name} | " in card


@pytest.mark.parametrize(
    ("name", "front_matter", "row"),
    [
        ("tiny", None, "tiny (preset, from random weights)"),
        ("someone/model", 'base_model: "someone/model"', "someone/model (pretrained)"),
        ("/home/me/SmolLM2", None, "SmolLM2 (pretrained)"),
    ],
)
def test_the_card_names_the_base_model_without_paths_of_this_machine(
    tmp_path: Path, name: str, front_matter: str | None, row: str
) -> None:
    run = toy_run(tmp_path, 3, model__name=name)
    lines = model_card(RunDir.open(run), None, "float32").splitlines()
    assert [line for line in lines if line.startswith("base_model")] == [
        *([front_matter] if front_matter else [])
    ]
    assert f"| base model | {row} |" in lines


@pytest.mark.parametrize(
    ("dtype", "row"),
    [
        ("float32", "float32 weights"),
        ("bfloat16", "computed in bfloat16, float32 weights"),
        ("float16", "computed in float16, float32 weights"),
    ],
)
def test_the_card_says_what_the_training_computed_in(tmp_path: Path, dtype: str, row: str) -> None:
    run = toy_run(tmp_path, 3, train__dtype=dtype)
    card = model_card(RunDir.open(run), None, "float32")
    assert f"| precision | {row} |" in card.splitlines()


def test_the_configuration_in_the_card_is_the_runs(run: Path, tmp_path: Path) -> None:
    toml = card_of(run, tmp_path).partition("```toml\n")[2].partition("\n```")[0]
    (tmp_path / "run.toml").write_text(toml)
    assert load_config(tmp_path / "run.toml") == load_config(run / "config.toml")


def test_a_checkpoint_has_its_own_step_in_the_card(run: Path, tmp_path: Path) -> None:
    first = sorted((run / "checkpoints").iterdir())[0]
    assert "| steps | 3 of 4 |" in card_of(first, tmp_path)


def test_a_run_without_its_records_can_still_be_exported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, copy := tmp_path / "a [run](x)")
    shutil.rmtree(copy / "checkpoints")
    (copy / "events.jsonl").unlink()
    (copy / "metrics.jsonl").write_text("{half a\n")
    card = card_of(copy, tmp_path)
    assert "# a \\[run\\](x)\n" in card and "| seed | 0 |" in card
    assert "## Data" not in card and "## Versions" not in card


def test_a_plain_directory_keeps_its_card(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "hf", "float32")
    (tmp_path / "hf/README.md").write_text("my words")
    export_model(tmp_path / "hf", tmp_path / "half", "bfloat16")
    assert (tmp_path / "half/README.md").read_text() == "my words"
    (tmp_path / "hf/README.md").unlink()
    export_model(tmp_path / "hf", tmp_path / "bare", "float32")
    assert {path.name for path in (tmp_path / "bare").iterdir()} == FILES - {"README.md"}


def test_an_output_that_exists_is_refused_and_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match="hf: exists already") as caught:
        export_model(run, tmp_path / "hf", "float32")
    assert caught.value.hint == "choose another --output"
    assert list((tmp_path / "hf").iterdir()) == []


def test_a_failure_half_way_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sftctl.folders.sync_file", fail)
    with pytest.raises(CheckpointError, match="hf: can't be written: No space left on device"):
        export_model(run, tmp_path / "hf", "float32")
    assert list(tmp_path.iterdir()) == []
