"""Downloads and copies that went wrong, as people report them: inspect-ckpt says what is there."""

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.errors import NoCheckpoint
from sftctl.inspection.inspect import inspect_path
from tests.toys.commands import Result
from tests.toys.models import toy_base
from tests.toys.tools.adapters import save_adapter
from tests.toys.tools.deepspeed import save_zero
from tests.toys.tools.others import save_megatron

Sftctl = Callable[..., Result]
Damage = Callable[[Path], object]
PAGE = b"<!DOCTYPE html><html><head></head></html>"
NOT_FINISHED = "its download is not finished"
DOWNLOAD = "download the file itself"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    toy_base().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(weights(folder)).items()}


def pickled(folder: Path) -> None:
    """A file of torch.save under the name of a safetensors file."""
    found = tensors(folder)
    weights(folder).unlink()
    torch.save(found, weights(folder))


def linked(folder: Path) -> None:
    weights(folder).unlink()
    weights(folder).symlink_to("../../blobs/gone")


def piped(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def emptied(folder: Path) -> None:
    save_file({name: torch.empty(0) for name in tensors(folder)}, weights(folder))


FOLDERS: dict[str, tuple[Damage, str | None, str]] = {
    "a web page": (
        lambda f: weights(f).write_bytes(PAGE),
        "model.safetensors: a web page, not the file itself", DOWNLOAD,
    ),
    "aria2 has not finished": (
        lambda f: (f / "model.safetensors.aria2").write_bytes(bytes(40)),
        f"model.safetensors: {NOT_FINISHED}: model.safetensors.aria2 is there", "finish the",
    ),
    "the hub's library has not finished": (
        lambda f: weights(f).rename(f / "model.safetensors.incomplete"),
        f"model.safetensors: {NOT_FINISHED}: model.safetensors.incomplete is there", "finish the",
    ),
    "a link to nothing": (
        linked, f"model.safetensors: a link to a file that is not there; {NOT_FINISHED}", "finish",
    ),
    "torch's file as safetensors": (
        pickled, "model.safetensors: by its content this is a file of torch.save", "give the file",
    ),
    "safetensors as torch's file": (
        lambda f: weights(f).rename(f / "pytorch_model.bin"),
        "pytorch_model.bin: by its content this is a safetensors file", "give the file the name",
    ),
    "a pipe as config.json": (piped, "config.json: not a regular file", "correct this file"),
    "zero 3, not gathered": (
        emptied, "config.json: 21 tensors of another shape than config.json says: lm_head.weight i",
        "save it again with its weights gathered",
    ),
    "macOS's own file": (
        lambda f: (f / "._model.safetensors").write_bytes(b"\0\5\x16\7" + bytes(99)), None, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_model_folder_says_what_is_wrong_with_it(model: Path, kind: str) -> None:
    damage, problem, hint = FOLDERS[kind]
    damage(model)
    found = inspect_path(model)
    if problem is None:
        assert (found.problems, found.complete) == ([], True)
    else:
        assert found.problems[0].startswith(problem) and not found.complete
        assert found.damage_hint.startswith(hint)


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.pt", "x.ckpt"])
def test_a_web_page_is_named_under_every_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PAGE)
    found = inspect_path(tmp_path / name)
    assert found.problems == [f"{name}: a web page, not the file itself"]
    assert found.damage_hint.startswith(DOWNLOAD)


def pickled_nothing(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")


ADAPTERS: dict[str, tuple[Damage, str]] = {
    "zero 3, not gathered": (
        lambda f: save_file(
            {n: torch.empty(0) for n in load_file(f / "adapter_model.safetensors")},
            f / "adapter_model.safetensors",
        ),
        "adapter_model.safetensors: 2 tensors are empty, as a rank of DeepSpeed ZeRO-3 saves what ",
    ),
    "a file of 40 bytes": (
        lambda f: save_file({}, f / "adapter_model.safetensors"),
        "adapter_model.safetensors: it holds no tensors",
    ),
    "a pickle of 443 bytes": (
        pickled_nothing,
        "adapter_model.bin: it holds no tensors",
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_without_numbers_is_not_complete(tmp_path: Path, kind: str) -> None:
    damage, problem = ADAPTERS[kind]
    damage(save_adapter(tmp_path))
    found = inspect_path(tmp_path)
    assert found.problems[0].startswith(problem) and not found.complete


def below(place: str) -> Damage:
    return lambda folder: toy_base().save_pretrained(folder / place)


AROUND: dict[str, tuple[Damage, str]] = {
    "a cache of the hub": (below("snapshots/abc"), "a folder around snapshots/abc"),
    "an output folder": (below("tmp-checkpoint-300"), "a folder around tmp-checkpoint-300"),
}


@pytest.mark.parametrize("kind", AROUND)
def test_a_folder_around_a_checkpoint_names_it_in_a_command_that_works(
    tmp_path: Path, sftctl: Sftctl, kind: str
) -> None:
    make, problem = AROUND[kind]
    make(tmp_path)
    result = sftctl("inspect-ckpt", tmp_path)
    assert (result.exit_code, result.error) == (4, f"error: {tmp_path}: {problem}")
    named = result.stderr.partition("`sftctl inspect-ckpt ")[2].partition("`")[0]
    assert inspect_path(Path(named)).complete


@pytest.mark.parametrize("name", ["x.gguf.part1of2", "x.gguf.part2of2", "x.gguf-split-a"])
def test_a_part_of_a_cut_file_has_the_command_that_joins_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(NoCheckpoint, match="a part of a file that was cut") as refused:
        inspect_path(tmp_path / name)
    start = name[: name.index("t", 6) + 1] if "part" in name else "x.gguf-split-"
    assert f"`cat {start}* > x.gguf`" in str(refused.value.hint)


@pytest.mark.parametrize("text", ["9" * 5000, "\u00b2", "\x1b[2J"])
def test_a_tracker_file_with_no_number_is_named_and_not_a_traceback(
    tmp_path: Path, text: str
) -> None:
    save_megatron(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    [problem] = inspect_path(tmp_path).problems
    assert problem.endswith("missing, but latest_checkpointed_iteration.txt names it")
    assert len(problem) < 200 and problem.isprintable()


def test_a_loss_that_is_not_a_number_does_not_damage_a_trainers_state(tmp_path: Path) -> None:
    """Python's json module writes it so, and reads it."""
    folder = tmp_path / "checkpoint-3"
    toy_base().save_pretrained(folder)
    history = '[{"loss": NaN, "step": 3}]'
    state = f'{{"global_step": 3, "epoch": 1.0, "log_history": {history}}}'
    (folder / "trainer_state.json").write_text(state)
    found = inspect_path(folder)
    assert (found.problems, found.facts["step"]) == ([], 3)


def test_a_pipe_in_place_of_a_tracker_does_not_hang(tmp_path: Path) -> None:
    path = save_zero(tmp_path, 2).parent
    (path / "latest").unlink()
    os.mkfifo(path / "latest")
    assert inspect_path(path).facts["step"] == 10


def test_the_model_of_a_folder_is_proposed_and_not_its_projector(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "mmproj-f16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(NoCheckpoint) as refused:
        inspect_path(tmp_path)
    assert f"`sftctl inspect-ckpt {tmp_path / 'a-Q4.gguf'}`" in str(refused.value.hint)


def pipeline(folder: Path) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")


ELSE: dict[str, tuple[str, Damage, str, str]] = {
    # its name, how it is made, what it is, and what to do
    "a zip of a model": (
        "m.zip", lambda f: ZipFile(f, "w").writestr("m/config.json", "{}"),
        "a zip archive that torch.save did not write", "unpack it",
    ),
    "a tar of a model": (
        "m.tar", lambda f: f.write_bytes(tarfile.TarInfo("m").tobuf()),
        "a tar archive", "unpack it",
    ),
    "gzip": ("m.tar.gz", lambda f: f.write_bytes(gzip.compress(b"x")), "compressed by gzip", ""),
    "weights of Keras": (
        "m.h5", lambda f: f.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "convert it",
    ),
    "a model for inference": (
        "m.onnx", lambda f: f.write_bytes(b"\x08\x07"), "an ONNX model", "take the model",
    ),
    "rows": (
        "rows.jsonl", lambda f: f.write_text("{}\n"), "not a checkpoint, but perhaps row",
        "`sftctl train --da",
    ),
    "zeros": ("m.dat", lambda f: f.write_bytes(bytes(99)), "zero bytes", "download it again"),
    "config.json of a model": (
        "m/config.json", lambda f: toy_base().save_pretrained(f.parent),
        "a part of the checkpoint in its folder", "inspect the folder: `sftctl inspect-ckpt",
    ),
    "an index": (
        "m/model.safetensors.index.json",
        lambda f: toy_base().save_pretrained(f.parent, max_shard_size="10KB"),
        "a part of the checkpoint in its folder", "inspect the folder: `sftctl inspect-ckpt",
    ),
    "a pipeline of diffusers": (
        "sd", pipeline,
        "a pipeline of diffusers", "sftctl trains and inspects language models",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ELSE)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, sftctl: Sftctl, kind: str) -> None:
    name, make, what, hint = ELSE[kind]
    make(path := tmp_path / name)
    result = sftctl("inspect-ckpt", path)
    assert result.exit_code == 4
    assert result.error.startswith(f"error: {path}: {what}"), result.error
    assert f"hint: {hint}" in result.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.gguf"])
def test_a_file_that_begins_with_zero_bytes_is_an_unfinished_download(
    model: Path, name: str
) -> None:
    weights(model).unlink()
    (model / name).write_bytes(bytes(100_000))
    shown = model / name if name == "x.gguf" else model
    found = inspect_path(shown)
    assert f"{name}: {NOT_FINISHED}: it begins with zero bytes" in found.problems
    assert found.damage_hint.startswith("finish the download")


INSIDE: dict[str, tuple[str, ...]] = {
    "a cache of the hub": ("snapshots/abc",),
    "a Trainer's output": ("checkpoint-10", "checkpoint-20"),
    "unpacked twice": ("m",),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_a_folder_around_a_model_names_the_model_to_train(
    tmp_path: Path, sftctl: Sftctl, kind: str
) -> None:
    for number, name in enumerate(INSIDE[kind]):
        toy_base().save_pretrained(tmp_path / name)
        os.utime(tmp_path / name / "config.json", (number, number))
    result = sftctl("train", "--model", tmp_path, "--dry-run")
    assert result.exit_code == 2
    assert f"hint: did you mean {tmp_path / INSIDE[kind][-1]}?" in result.stderr


@pytest.mark.parametrize("name", ["config.json.txt", "config (1).json", "Config.json"])
def test_a_config_json_of_another_name_is_named(model: Path, sftctl: Sftctl, name: str) -> None:
    (model / "config.json").rename(model / name)
    result = sftctl("train", "--model", model, "--dry-run")
    assert result.exit_code == 2
    assert f"hint: is {name} its config.json? Rename it then" in result.stderr


def test_a_pipe_is_not_waited_for(tmp_path: Path, sftctl: Sftctl) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert sftctl("inspect-ckpt", tmp_path / "pipe.jsonl").exit_code == 4


ADDRESSES = {
    "https://huggingface.co/Qwen/Qwen3-0.6B": "give its name on the hub: Qwen/Qwen3-0.6B",
    "huggingface.co/Qwen/Qwen3-0.6B/tree/main": "give its name on the hub: Qwen/Qwen3-0.6B",
    "https://example.org/model.tar.gz": "download it, and name its folder",
    "s3://bucket/model": "download it, and name its folder",
}


@pytest.mark.parametrize("option", ["--model", "--tokenizer"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_of_a_model_has_the_name_to_give(
    sftctl: Sftctl, address: str, option: str
) -> None:
    result = sftctl("train", option, address, "--dry-run")
    error = f"error: {address}: an address, not a name on the hub"
    assert (result.exit_code, result.error) == (2, error)
    assert f"hint: {ADDRESSES[address]}\n" in result.stderr
