"""Every format of another tool, on files that the tool itself wrote."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sftctl import jsonio
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import NoCheckpoint
from sftctl.inspection.inspect import FORMATS, inspect_path
from sftctl.inspection.inspection import MANIFEST_KEYS
from tests.toys.foreign import pickled_object, toy_model, toy_optimizer, write_archive, write_gguf
from tests.toys.tools.adapters import save_adapter

GROUPS = {"mlp": 3072, "attention": 1536, "head": 1024, "embedding": 1024, "norm": 112}


def change(file: Path, at: int = -40) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_every_format_recognizes_a_checkpoint_that_the_formats_before_it_do_not(
    trained: Path,
    trainer_output: Path,
    distributed: Path,
    minimind: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    paths = [
        trained,
        trained / "checkpoints" / "step-00000012",
        trainer_output / "checkpoint-4",
        distributed,
        trainer_output,
        trained / "final",
        write_gguf(tmp_path / "x.gguf"),
        trained / "final" / "model.safetensors",
        minimind[0],
    ]
    found = [next(one.name for one in FORMATS if one.recognises(path)) for path in paths]
    assert found == [
        "a run of sftctl",
        "one of its checkpoints",
        "checkpoint-N of transformers or TRL",
        "a folder of torch.distributed.checkpoint",
        "a folder of checkpoint-N",
        "its final model",
        ".gguf",
        ".safetensors",
        "a file of torch.save, such as MiniMind's .pth",
    ]


def test_everything_known_about_a_trainers_checkpoint(trainer_output: Path) -> None:
    path = trainer_output / "checkpoint-4"
    inspection = inspect_path(path).to_json()
    assert inspection["format"] == "transformers Trainer checkpoint"
    assert (inspection["step"], inspection["total_steps"], inspection["epoch"]) == (4, 10, 0.8)
    assert inspection["step_counts"] == "optimizer updates (global_step)"
    assert (inspection["step_in_epoch"], inspection["steps_per_epoch"]) == (4, 5)
    assert inspection["epoch_ratio"] == 0.8
    assert (inspection["global_batch_size"], inspection["world_size"]) == (4, 1)
    assert inspection["learning_rate"] == pytest.approx(3.5e-5)  # logged for step 4
    assert inspection["next_learning_rate"] == pytest.approx(3e-5)  # the scheduler's
    assert inspection["loss"] == pytest.approx(4.2, abs=0.3)
    assert inspection["config"]["training_args"]["lr_scheduler_type"] == "linear"
    assert inspection["parameters_by_group"] == GROUPS
    assert inspection["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert inspection["rng"]["ranks"] == 1
    assert inspection["rng"]["generators"] == ["cpu", "numpy", "python"]
    assert inspection["dtype"] == "float32"
    assert inspection["files"].keys() == {file.name for file in path.iterdir()}
    assert (inspection["complete"], inspection["verified"], inspection["problems"]) == (
        True,
        None,
        [],
    )
    assert not inspection["resumable"]
    assert inspection["obstacles"] == ["sftctl resumes its own runs only"]
    assert "trainer.train(resume_from_checkpoint=" in inspection["advice"]
    assert inspection.keys() >= {*MANIFEST_KEYS} and inspection["data_fingerprint"] is None


def test_the_output_folder_of_a_trainer_lists_its_checkpoints(trainer_output: Path) -> None:
    inspection = inspect_path(trainer_output)
    assert inspection.checkpoints is not None
    assert [one.facts["step"] for one in inspection.checkpoints] == [4, 8, 10]
    assert inspection.facts["step"] == 10


def test_files_missing_from_a_trainers_checkpoint_are_noted(
    trainer_output: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint-4"
    shutil.copytree(trainer_output / "checkpoint-4", path)
    for name in ("optimizer.pt", "rng_state.pth"):
        (path / name).unlink()
    inspection = inspect_path(path)
    assert "not in it: optimizer.pt, rng_state.pth" in inspection.notes
    assert inspection.optimizer_moments == {} and inspection.rng is None


def test_verify_finds_a_changed_byte_in_a_trainers_optimizer(
    trainer_output: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint-4"
    shutil.copytree(trainer_output / "checkpoint-4", path)
    change(path / "optimizer.pt", at=30_000)
    inspection = inspect_path(path, verify=True)
    assert inspection.verified is False
    [damage] = inspection.damage
    assert damage.startswith(f"{path}/optimizer.pt: optimizer/data/")
    assert damage.endswith("its content was changed (different checksum)")


@pytest.fixture
def checkpoint(trainer_output: Path, tmp_path: Path) -> Path:
    """A copy of a Trainer's checkpoint at step 4."""
    return Path(shutil.copytree(trainer_output / "checkpoint-4", tmp_path / "checkpoint-4"))


def set_arguments(checkpoint: Path, values: Mapping[str, object]) -> None:
    """Write other arguments, of a class that is not installed here."""
    data = pickled_object("trl.trainer.sft_config.SFTConfig", values)
    write_archive(checkpoint / "training_args.bin", data)


def set_state(checkpoint: Path, **values: object) -> None:
    file = checkpoint / "trainer_state.json"
    file.write_bytes(jsonio.dump_line(jsonio.loads(file.read_bytes()) | values))


@pytest.mark.parametrize(
    ("settings", "format"),
    [
        ("trl.trainer.sft_config.SFTConfig", "TRL checkpoint (SFTConfig)"),
        (
            "llamafactory.hparams.training_args.TrainingArguments",
            "LLaMA-Factory checkpoint (TrainingArguments)",
        ),
        ("UnslothSFTTrainer.UnslothSFTConfig", "Unsloth checkpoint (UnslothSFTConfig)"),
        (
            "axolotl.core.training_args.AxolotlTrainingArguments",
            "axolotl checkpoint (AxolotlTrainingArguments)",
        ),
    ],
)
def test_the_settings_of_a_checkpoint_with_an_adapter_name_its_tool(
    tmp_path: Path, settings: str, format: str
) -> None:
    folder = save_adapter(tmp_path / "checkpoint-8", use_dora=True)
    (folder / "trainer_state.json").write_bytes(jsonio.dump_line({"global_step": 8}))
    write_archive(folder / "training_args.bin", pickled_object(settings, {"bf16": True}))
    found = inspect_path(folder)
    assert found.format == f"{format}, PEFT adapter (LORA)"
    assert found.facts["step"] == 8 and not found.problems
    assert "an adapter of rank 4 (DoRA) on q_proj, for owner/base" in found.notes[0]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"bf16": True, "fp16": False}, "bfloat16"),
        ({"bf16": False, "fp16": True}, "float16"),
        ({"bf16": False, "fp16": False}, "float32"),
    ],
)
def test_the_dtype_of_a_trainers_checkpoint_is_in_its_arguments(
    checkpoint: Path, values: dict[str, object], dtype: str
) -> None:
    set_arguments(checkpoint, values)
    inspection = inspect_path(checkpoint)
    assert inspection.format == "TRL checkpoint (SFTConfig)"
    assert inspection.facts["dtype"] == dtype
    assert inspection.facts["config"] == {"training_args": values}


def test_without_arguments_the_dtype_is_the_weights_dtype(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").unlink()
    (checkpoint / "config.json").unlink()
    inspection = inspect_path(checkpoint)
    assert inspection.facts["dtype"] == "float32"
    assert "config" not in inspection.facts and "global_batch_size" not in inspection.facts


def test_the_ranks_of_a_trainers_checkpoint_are_in_its_arguments(checkpoint: Path) -> None:
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}
    set_arguments(checkpoint, sizes | {"distributed_state": {"num_processes": 4}})
    facts = inspect_path(checkpoint).facts
    assert (facts["world_size"], facts["global_batch_size"]) == (4, 60)


def test_without_arguments_the_number_of_ranks_is_the_number_of_rng_states(
    checkpoint: Path,
) -> None:
    set_arguments(checkpoint, {})
    shutil.copy(checkpoint / "rng_state.pth", checkpoint / "rng_state_0.pth")
    shutil.move(checkpoint / "rng_state.pth", checkpoint / "rng_state_1.pth")
    inspection = inspect_path(checkpoint)
    assert inspection.facts["world_size"] == 2
    assert inspection.rng is not None and inspection.rng["ranks"] == 2
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        (checkpoint / name).unlink()
    inspection = inspect_path(checkpoint)
    assert inspection.facts["world_size"] is None
    assert "not in it: rng_state.pth" in inspection.notes


def test_validation_losses_of_a_trainer_are_first_best_and_last(checkpoint: Path) -> None:
    losses = [(1, 5.0), (2, 3.0), (3, 4.0), (3, "not a number")]
    history = [{"step": step, "eval_loss": loss} for step, loss in losses]
    set_state(checkpoint, log_history=[*history, "not an object"])
    validation = {"first": 5.0, "best": 3.0, "last": 4.0, "step": 3}
    assert inspect_path(checkpoint).facts["validation"] == validation


def test_values_that_are_not_numbers_in_a_trainers_state_are_unknown(checkpoint: Path) -> None:
    set_state(checkpoint, global_step="four", epoch=[0.8], max_steps=None, log_history=5)
    inspection = inspect_path(checkpoint)
    assert (inspection.facts["step"], inspection.facts["epoch"], inspection.loss) == (None,) * 3
    assert inspection.epoch_ratio is None


def test_the_next_learning_rate_without_a_scheduler_is_the_optimizers(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()
    inspection = inspect_path(checkpoint)
    assert inspection.next_learning_rate == pytest.approx(3e-5)
    assert "not in it: scheduler.pt" in inspection.notes


def test_weights_and_optimizer_of_fsdp_are_folders(checkpoint: Path) -> None:
    for name, folder in (("optimizer.pt", "optimizer_0"), ("model.safetensors", "model_0")):
        (checkpoint / folder).mkdir()
        shutil.move(checkpoint / name, checkpoint / folder / "__0_0.distcp")
    inspection = inspect_path(checkpoint)
    assert not [note for note in inspection.notes if note.startswith("not in it")]
    assert not inspection.tensors
    for folder in ("optimizer_0", "model_0"):
        shutil.rmtree(checkpoint / folder)
    found = inspect_path(checkpoint)
    assert "not in it: optimizer.pt" in found.notes
    assert [*found.problems] == ["model.safetensors: missing"]


def test_a_damaged_newest_checkpoint_of_a_trainer_has_no_advice(
    trainer_output: Path, tmp_path: Path
) -> None:
    shutil.copytree(trainer_output, tmp_path / "output")
    change(tmp_path / "output/checkpoint-10/optimizer.pt", at=30_000)
    inspection = inspect_path(tmp_path / "output", verify=True)
    assert (inspection.complete, inspection.verified, inspection.advice) == (False, False, None)
    assert inspection.checkpoints is not None and inspection.checkpoints[0].complete


def test_the_step_of_a_minimind_resume_file_counts_micro_batches(
    minimind: tuple[Path, Path],
) -> None:
    inspection = inspect_path(minimind[0], verify=True).to_json()
    assert inspection["format"] == "MiniMind resume file"
    assert (inspection["step"], inspection["epoch"], inspection["world_size"]) == (300, 1, 2)
    assert inspection["step_counts"] == "micro-batches of one rank in this epoch"
    assert inspection["epoch_counts"] == "from 0"
    assert (inspection["dtype"], inspection["learning_rate"]) == ("float16", 1e-3)
    assert inspection["scaler"]["scale"] == 65536.0
    assert inspection["wandb_run_id"] == "abc123"
    assert inspection["parameters_by_group"] == GROUPS
    assert inspection["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert inspection["notes"] == ["no RNG state: a resumed run will differ"]
    assert (inspection["complete"], inspection["verified"], inspection["resumable"]) == (
        True,
        True,
        False,
    )


def test_a_file_of_weights_has_no_optimizer_and_no_step(minimind: tuple[Path, Path]) -> None:
    inspection = inspect_path(minimind[1])
    assert inspection.format == "torch weights file"
    assert inspection.obstacles == ["only weights: no optimizer, no step"]
    assert inspection.num_parameters == 6768 and inspection.facts["dtype"] == "float16"


def test_the_old_format_of_torch_save(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).T, "b.weight": torch.ones(4).half()}
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    inspection = inspect_path(tmp_path / "old.pth", verify=True)
    assert {name: t.shape for name, t in inspection.tensors.items()} == {
        "model.a.weight": (3, 2),
        "model.b.weight": (4,),
    }
    assert inspection.problems == [] and inspection.verified is None  # it has no checksums


def test_a_file_of_an_optimizer_has_no_weights(tmp_path: Path) -> None:
    torch.save(toy_optimizer(toy_model()).state_dict(), tmp_path / "optimizer.bin")
    inspection = inspect_path(tmp_path / "optimizer.bin")
    assert inspection.format == "torch optimizer file"
    assert inspection.facts["learning_rate"] == 1e-3
    assert (inspection.num_parameters, inspection.optimizer_moments["exp_avg"]) == (0, 25)


def test_a_distributed_checkpoint(distributed: Path) -> None:
    found = inspect_path(distributed, verify=True)
    inspection = found.to_json()
    assert {tensor.dtype for tensor in found.tensors.values()} == {"F32"}
    assert inspection["format"] == "torch.distributed checkpoint"
    assert (inspection["step"], inspection["epoch"]) == (7, 0)
    assert inspection["step_counts"] == "as stored under 'step'"
    assert inspection["learning_rate"] == 1e-3
    assert inspection["parameters_by_group"] == GROUPS
    assert inspection["optimizer_moments"] == {"exp_avg": 25, "exp_avg_sq": 25}
    assert (inspection["complete"], inspection["verified"]) == (True, True)
    assert inspection["world_size"] == 1


@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_missing_or_cut_distcp_file_is_a_problem(
    distributed: Path, tmp_path: Path, harm: str
) -> None:
    path = tmp_path / "dcp"
    shutil.copytree(distributed, path)
    file = path / "__0_0.distcp"
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    inspection = inspect_path(path)
    assert not inspection.complete
    assert inspection.problems[0].startswith(f"__0_0.distcp: {harm}")


def test_a_hugging_face_directory_of_several_shards(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    inspection = inspect_path(tmp_path / "hf")
    assert inspection.format == "Hugging Face model directory"
    assert len([name for name in inspection.files if name.endswith(".safetensors")]) > 1
    assert inspection.parameters_by_group == GROUPS
    assert (inspection.complete, inspection.problems) == (True, [])
    assert inspection.facts["config"]["model"]["model_type"] == "qwen3"
    assert inspection.notes == ["no tokenizer in it: train needs --tokenizer DIR"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SAMPLE_TOKENIZER / name, tmp_path / "hf")
    inspection = inspect_path(tmp_path / "hf")
    [note] = inspection.notes  # the toy's embeddings are fewer than the sample's tokens
    assert note.startswith("its tokenizer has 2048 ids, the model has embeddings for ")
    lost = next((tmp_path / "hf").glob("*-00002-of-*"))
    lost.unlink()
    inspection = inspect_path(tmp_path / "hf")
    assert inspection.problems == [
        f"{lost.name}: missing, model.safetensors.index.json refers to it"
    ]
    assert not inspection.complete


def test_a_directory_with_pytorch_model_bin(tmp_path: Path) -> None:
    torch.save(toy_model().state_dict(), tmp_path / "pytorch_model.bin")
    toy_model().config.save_pretrained(tmp_path)
    inspection = inspect_path(tmp_path, verify=True)
    assert (inspection.parameters_by_group, inspection.verified) == (GROUPS, True)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_weights_needs_no_config(tmp_path: Path, name: str) -> None:
    weights = toy_model().state_dict()
    save = save_file if name.endswith(".safetensors") else torch.save
    save(weights, tmp_path / name)
    inspection = inspect_path(tmp_path)
    assert inspection.format == "Hugging Face model directory"
    assert (inspection.parameters_by_group, inspection.complete) == (GROUPS, True)
    assert inspection.facts["dtype"] == "float32" and "config" not in inspection.facts


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_directory(tmp_path: Path, name: str) -> None:
    weights = {"layers.0.q_proj.lora_A.weight": torch.ones(2, 4)}
    save = save_file if name.endswith(".safetensors") else torch.save
    save(weights, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    inspection = inspect_path(tmp_path)
    assert inspection.format == "PEFT adapter directory"
    assert inspection.facts["config"] == {"adapter": {"r": 2}}
    assert inspection.parameters_by_group == {"lora": 8}


def test_a_model_directory_without_weights_has_a_note(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    inspection = inspect_path(tmp_path)
    assert inspection.notes == ["no weights in it"] and inspection.facts["dtype"] == "bfloat16"


def test_one_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
    inspection = inspect_path(file)
    assert (inspection.format, inspection.num_parameters) == ("safetensors file", 10)
    file.write_bytes(file.read_bytes()[:-3])
    inspection = inspect_path(file)
    assert not inspection.complete
    assert inspection.damage[0].startswith(f"{file}: not a safetensors header: data from byte ")


def test_a_text_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see here")
    with pytest.raises(NoCheckpoint, match=r"notes\.txt: not a checkpoint"):
        inspect_path(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.gguf"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04rubbish", b"\x80\x02}", b"\xff" * 100])
def test_random_bytes_with_a_known_suffix_are_a_problem(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    inspection = inspect_path(tmp_path / name, verify=True)
    assert not inspection.complete and inspection.verified is False
    assert inspection.problems[0].startswith(f"{name}: not a")
    assert inspection.num_bytes == len(data)


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [
        (torch.float64, "float64"),
        (torch.bfloat16, "bfloat16"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_floats_that_train_have_torchs_name_and_other_types_that_of_safetensors(
    tmp_path: Path, dtype: torch.dtype, shown: str
) -> None:
    save_file({"a": torch.zeros(4).to(dtype)}, tmp_path / "x.safetensors")
    assert inspect_path(tmp_path / "x.safetensors").to_json()["dtype"] == shown


def test_a_file_without_tensors_is_not_complete(tmp_path: Path) -> None:
    save_file({}, tmp_path / "x.safetensors")
    inspection = inspect_path(tmp_path / "x.safetensors")
    assert inspection.problems == ["x.safetensors: it holds no tensors"]
    assert not inspection.complete
