"""Each format, on files that the real tool made."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sftctl.errors import NoCheckpoint
from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.inspection import MANIFEST_KEYS
from tests.toys.foreign import toy_model, toy_optimizer

GROUPS = {"mlp": 3072, "attention": 1536, "head": 1024, "embedding": 1024, "norm": 112}


def change(file: Path, at: int = -40) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_trainers_checkpoint_tells_where_its_training_stood(trainer_output: Path) -> None:
    path = trainer_output / "checkpoint-4"
    report = inspect_path(path).to_json()
    assert report["format"] == "transformers Trainer checkpoint"
    assert (report["step"], report["total_steps"], report["epoch"]) == (4, 10, 0.8)
    assert report["step_counts"] == "optimizer updates (global_step)"
    assert (report["step_in_epoch"], report["steps_per_epoch"]) == (4, 5)
    assert report["epoch_ratio"] == 0.8
    assert (report["global_batch_size"], report["world_size"]) == (4, 1)
    assert report["learning_rate"] == pytest.approx(3.5e-5)  # logged for step 4
    assert report["next_learning_rate"] == pytest.approx(3e-5)  # the scheduler's
    assert report["loss"] == pytest.approx(4.2, abs=0.3)
    assert report["config"]["training_args"]["lr_scheduler_type"] == "linear"
    assert report["parameters_by_group"] == GROUPS
    assert report["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert report["rng"]["ranks"] == 1
    assert report["rng"]["generators"] == ["cpu", "numpy", "python"]
    assert report["dtype"] == "float32"
    assert report["files"].keys() == {file.name for file in path.iterdir()}
    assert (report["complete"], report["verified"], report["problems"]) == (True, None, [])
    assert not report["resumable"]
    assert report["obstacles"] == ["sftctl resumes its own runs only"]
    assert "trainer.train(resume_from_checkpoint=" in report["advice"]
    assert report.keys() >= {*MANIFEST_KEYS} and report["data_fingerprint"] is None


def test_the_output_folder_of_a_trainer_lists_its_checkpoints(trainer_output: Path) -> None:
    report = inspect_path(trainer_output)
    assert report.checkpoints is not None
    assert [one.facts["step"] for one in report.checkpoints] == [4, 8, 10]
    assert report.facts["step"] == 10


def test_what_a_trainers_checkpoint_lacks_is_told(trainer_output: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-4"
    shutil.copytree(trainer_output / "checkpoint-4", path)
    for name in ("optimizer.pt", "rng_state.pth"):
        (path / name).unlink()
    report = inspect_path(path)
    assert report.notes == ["not in it: optimizer.pt, rng_state.pth"]
    assert report.optimizer_moments == {} and report.rng is None


def test_a_changed_byte_of_a_trainers_optimizer_is_found(
    trainer_output: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint-4"
    shutil.copytree(trainer_output / "checkpoint-4", path)
    change(path / "optimizer.pt", at=30_000)
    report = inspect_path(path, verify=True)
    assert report.verified is False
    [damage] = report.damage
    assert damage.startswith(f"{path}/optimizer.pt: optimizer/data/")
    assert damage.endswith("its content was changed (another checksum)")


def test_minimind_s_resume_file_counts_micro_batches(minimind: tuple[Path, Path]) -> None:
    report = inspect_path(minimind[0], verify=True).to_json()
    assert report["format"] == "MiniMind resume file"
    assert (report["step"], report["epoch"], report["world_size"]) == (300, 1, 2)
    assert report["step_counts"] == "micro-batches of one rank in this epoch"
    assert report["epoch_counts"] == "from 0"
    assert (report["dtype"], report["learning_rate"]) == ("float16", 1e-3)
    assert report["scaler"]["scale"] == 65536.0
    assert report["wandb_run_id"] == "abc123"
    assert report["parameters_by_group"] == GROUPS
    assert report["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert report["notes"] == ["no RNG state: a resumed run is another run"]
    assert (report["complete"], report["verified"], report["resumable"]) == (True, True, False)


def test_weights_alone_say_so(minimind: tuple[Path, Path]) -> None:
    report = inspect_path(minimind[1])
    assert report.format == "torch weights file"
    assert report.obstacles == ["weights alone: no optimizer, no step"]
    assert report.num_parameters == 6768 and report.facts["dtype"] == "float16"


def test_the_old_format_of_torch_save_is_read_too(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).T, "b.weight": torch.ones(4).half()}
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    report = inspect_path(tmp_path / "old.pth", verify=True)
    assert {name: t.shape for name, t in report.tensors.items()} == {
        "model.a.weight": (3, 2),
        "model.b.weight": (4,),
    }
    assert report.problems == [] and report.verified is None  # it has no checksums


def test_an_optimizer_alone_says_so(tmp_path: Path) -> None:
    torch.save(toy_optimizer(toy_model()).state_dict(), tmp_path / "optimizer.bin")
    report = inspect_path(tmp_path / "optimizer.bin")
    assert report.format == "torch optimizer file"
    assert report.facts["learning_rate"] == 1e-3
    assert (report.num_parameters, report.optimizer_moments["exp_avg"]) == (0, 25)


def test_a_folder_of_distributed_checkpoint_is_read_without_unpickling(distributed: Path) -> None:
    report = inspect_path(distributed, verify=True).to_json()
    assert report["format"] == "torch.distributed checkpoint"
    assert (report["step"], report["epoch"]) == (7, 0)
    assert report["step_counts"] == "as stored under 'step'"
    assert report["learning_rate"] == 1e-3
    assert report["parameters_by_group"] == GROUPS
    assert report["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert (report["complete"], report["verified"]) == (True, True)
    assert report["world_size"] == 1


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_lost_distcp_file_is_named(distributed: Path, tmp_path: Path, harm: str) -> None:
    path = tmp_path / "dcp"
    shutil.copytree(distributed, path)
    file = path / "__0_0.distcp"
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    report = inspect_path(path)
    assert not report.complete
    assert report.problems[0].startswith(f"__0_0.distcp: {harm}")


def test_a_hugging_face_directory_of_several_shards(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    report = inspect_path(tmp_path / "hf")
    assert report.format == "Hugging Face model directory"
    assert len([name for name in report.files if name.endswith(".safetensors")]) > 1
    assert report.parameters_by_group == GROUPS
    assert (report.complete, report.problems) == (True, [])
    assert report.facts["config"]["model"]["model_type"] == "qwen3"
    assert (
        report.advice == f"`sftctl train --model {tmp_path / 'hf'}` starts a run from its weights"
    )
    lost = next((tmp_path / "hf").glob("*-00002-of-*"))
    lost.unlink()
    report = inspect_path(tmp_path / "hf")
    assert report.problems == [f"{lost.name}: missing, model.safetensors.index.json refers to it"]
    assert not report.complete


def test_a_pytorch_bin_directory_is_read(tmp_path: Path) -> None:
    torch.save(toy_model().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "dtype": "float32"}')
    report = inspect_path(tmp_path, verify=True)
    assert (report.parameters_by_group, report.verified) == (GROUPS, True)


def test_one_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
    report = inspect_path(file)
    assert (report.format, report.num_parameters) == ("safetensors file", 10)
    file.write_bytes(file.read_bytes()[:-3])
    report = inspect_path(file)
    assert not report.complete
    assert report.damage[0].startswith(f"{file}: not a safetensors header: data to byte 32")


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see here")
    with pytest.raises(NoCheckpoint, match=r"notes\.txt: not a checkpoint"):
        inspect_path(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.gguf"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04rubbish", b"\x80\x02}", b"\xff" * 100])
def test_rubbish_with_a_known_name_is_a_problem_not_a_crash(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    report = inspect_path(tmp_path / name, verify=True)
    assert not report.complete and report.verified is False
    assert report.problems[0].startswith(f"{name}: not a")
    assert report.num_bytes == len(data)
