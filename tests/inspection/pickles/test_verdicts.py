"""What counts as code in a pickle or an archive: whole names, every pickle, every byte."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.pickles.opcodes import CallResult, Name, PersistentId, read_pickle
from sftctl.inspection.pickles.torch_tensors import storages_in
from tests.toys.foreign import Rebuilt, metadata, pickled, write_archive


def text(value: str) -> bytes:
    """A text as protocol 4 writes it."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str, call: bytes = b")R") -> bytes:
    """A pickle of protocol 4 that looks up a name and calls it without arguments."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + call + b"."


def global_name(module: str, name: str, call: bytes = b")R") -> bytes:
    """The same in protocol 2."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + call + b"."


CODE: dict[str, bytes] = {
    "os.system": named("os", "system"),
    "a function by way of an allowed module": named("torch", "os.system"),
    "a method of an allowed class": named("collections", "OrderedDict.fromkeys"),
    "an allowed name cut at another dot": named("torch", "storage.UntypedStorage"),
    "an allowed name in the module alone": named("torch.Size", "numel"),
    "an allowed prefix": named("torch", "float32_"),
    "a function that begins like a type": named("torch", "int_repr"),
    "a dtype's own module": named("numpy.dtypes", "os.getcwdDType"),
    "a class of transformers": named("transformers.pipelines.base", "Pipeline"),
    "a class of trl that is not a setting": named("trl.trainer.sft_trainer", "SFTTrainer"),
    "a class of peft": named("peft.peft_model", "PeftModel"),
    "a setting that is called": named("transformers.training_args", "TrainingArguments"),
    "a setting that is called in protocol 2": global_name("trl.trainer.sft_config", "SFTConfig"),
    "a setting that another function calls": b"\x80\x02ccopyreg\n_reconstructor\n"
    b"cbuiltins\nobject\nctransformers.training_args\nTrainingArguments\nN\x87R.",
    "a class of checkpointing that reads files": named(
        "torch.distributed.checkpoint.filesystem", "FileSystemReader"
    ),
    "torch.load in disguise": named("torch.storage", "_load_from_bytes"),
    "an extension": b"\x80\x02\x82\x01)R.",
    "a name that is computed": b"\x80\x04" + text("os") + b"N\x93)R.",
    "an instance of protocol 0": b"(ios\nsystem\n.",
    "an object of protocol 1": b"(cos\nsystem\no.",
    "after a part that is not a pickle": named("os", "system")[:-1] + b"\xff.",
    "before the file ends too early": named("os", "system")[:-1],
    "in a second pickle": pickle.dumps({}) + named("os", "system"),
    "in a third pickle": pickle.dumps({}) * 2 + named("os", "system"),
}


@pytest.mark.parametrize("data", CODE.values(), ids=CODE)
def test_code_is_reported_and_such_a_file_is_never_verified(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    for verify in (False, True):
        inspection = inspect_path(tmp_path / "x.pth", verify)
        assert any("refers to code: " in problem for problem in inspection.problems)
        assert not inspection.complete and inspection.verified is not True
        assert inspection.damage_hint.startswith("do not load it with torch.load")


@pytest.mark.parametrize("data", CODE.values(), ids=CODE)
def test_code_in_an_archive_is_reported_too(tmp_path: Path, data: bytes) -> None:
    write_archive(tmp_path / "x.pth", data)
    inspection = inspect_path(tmp_path / "x.pth", verify=True)
    assert inspection.problems and inspection.verified is not True


HARMLESS: dict[str, bytes] = {
    "an ordered dictionary": named("collections", "OrderedDict"),
    "an enumeration's member": global_name(
        "transformers.trainer_utils", "IntervalStrategy", b"X\x05\0\0\0steps\x85R"
    ),
    "settings": global_name("transformers.training_args", "TrainingArguments", b")\x81}b"),
    "settings of TRL": global_name("trl.trainer.dpo_config", "DPOConfig", b")\x81}b"),
    "an old name of a built-in": global_name("__builtin__", "set", b"]\x85R"),
    "a type": named("torch", "bfloat16", b""),
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_data_and_settings_are_not_code(data: bytes) -> None:
    assert read_pickle(io.BytesIO(data)).code == frozenset()


def after_the_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}) + b"not a pickle")


def after_the_storages(file: Path) -> None:
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes() + named("os", "system"))


def after_the_pickle_in_an_archive(file: Path) -> None:
    write_archive(file, pickled({"a": Rebuilt()}) + named("os", "system"), data_0=bytes(16))


def a_second_pickle_in_an_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled({}))
        archive.writestr("x/constants.pkl", named("os", "system"))


def two_pickles_of_one_name(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/DATA.PKL", named("os", "system"))
        archive.writestr("x/data.pkl", pickled({}))


def two_pickles_in_two_folders(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", named("os", "system"))
        archive.writestr("y/data.pkl", pickled({}))


def a_program(file: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))  # type: ignore[no-untyped-call]


def two_archives(file: Path) -> None:
    first = write_archive(file, named("os", "system")).read_bytes()
    second = write_archive(file, pickled({})).read_bytes()
    file.write_bytes(first + second)


def text_after_the_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled({}))
        archive.comment = named("os", "system")


def a_pickle_after_the_archive(file: Path) -> None:
    data = write_archive(file, pickled({})).read_bytes()
    file.write_bytes(data + named("os", "system"))


def another_name_in_the_header(file: Path) -> None:
    data = write_archive(file, pickled({}), other=named("os", "system")).read_bytes()
    file.write_bytes(data.replace(b"x/other", b"x/data1", 1))


def shared_bytes(file: Path) -> None:
    """Both entries of the directory have their bytes at the place of the second one."""
    data = bytearray(write_archive(file, pickled({}), data_0=bytes(16)).read_bytes())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[first + 42 : first + 46] = data[second + 42 : second + 46]
    file.write_bytes(data)


AMBIGUOUS: list[tuple[Callable[[Path], None], str]] = [
    (after_the_pickle, "x.pth: 12 bytes after its pickle"),
    (after_the_storages, "bytes after its storages"),
    (after_the_pickle_in_an_archive, "x.pth: data.pkl: 18 bytes after its pickle"),
    (a_second_pickle_in_an_archive, "x.pth: refers to code: os.system"),
    (two_pickles_of_one_name, "x.pth: refers to code: os.system"),
    (two_pickles_in_two_folders, "x.pth: y/data.pkl: a second entry of this name"),
    (a_program, "a TorchScript program"),
    (two_archives, "bytes before its first entry"),
    (text_after_the_archive, "x.pth: text or bytes after its directory"),
    (a_pickle_after_the_archive, "x.pth: text or bytes after its directory"),
    (another_name_in_the_header, "its own header has another name"),
    (shared_bytes, "x.pth: not a complete file of torch.save"),
]


@pytest.mark.parametrize(("make", "problem"), AMBIGUOUS)
def test_every_byte_is_read_or_reported(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    make(tmp_path / "x.pth")
    inspection = inspect_path(tmp_path / "x.pth", verify=True)
    assert problem in "; ".join(inspection.problems)
    assert inspection.verified is False


def a_model_with_a_second_file(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.pt", "scaler.pkl", "last.ckpt"])
def test_every_pickle_in_a_folder_is_read(tmp_path: Path, name: str) -> None:
    (a_model_with_a_second_file(tmp_path) / name).write_bytes(named("os", "system"))
    inspection = inspect_path(tmp_path, verify=True)
    assert inspection.problems == [f"{name}: refers to code: os.system (not run)"]
    assert inspection.verified is False and inspection.advice is None


def test_a_file_of_another_kind_with_such_a_name_is_not_damage(tmp_path: Path) -> None:
    folder = a_model_with_a_second_file(tmp_path)
    (folder / "openvino_model.bin").write_bytes(bytes(range(256)) * 4)
    assert inspect_path(folder).complete


def test_every_archive_of_a_distributed_checkpoint_is_read_when_it_is_verified(
    tmp_path: Path,
) -> None:
    archive = write_archive(tmp_path / "__0_0.distcp", named("os", "system"))
    content = metadata(length=archive.stat().st_size)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    assert inspect_path(tmp_path).problems == []
    verified = inspect_path(tmp_path, verify=True)
    assert verified.problems == ["__0_0.distcp: refers to code: os.system (not run)"]
    assert verified.verified is False


def test_a_place_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    archive = write_archive(tmp_path / "outside", pickled(Rebuilt()), data_0=bytes(16))
    content = metadata(file="../outside", length=archive.stat().st_size)
    (tmp_path / "checkpoint" / ".metadata").write_bytes(pickle.dumps(content))
    inspection = inspect_path(tmp_path / "checkpoint")
    assert inspection.problems == ["../outside: missing"]
    assert all(not tensor.parts for tensor in inspection.tensors.values())


def test_a_pickle_that_is_changed_in_its_archive_is_a_problem(tmp_path: Path) -> None:
    data = write_archive(tmp_path / "x.pth", pickle.dumps({"a": 1}, 2)).read_bytes()
    (tmp_path / "x.pth").write_bytes(data.replace(struct.pack("<BB", 0x4B, 1), b"K\x02", 1))
    [problem] = inspect_path(tmp_path / "x.pth").problems
    assert problem.endswith("its pickle was changed (different checksum)")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04" + b"(" * 100_000 + b".", "not a pickle"),
        (b"\x80\x04.", "not a pickle"),
        (b"\x80\x04K\x01(.", "not a pickle"),
    ],
)
def test_a_pickle_that_ends_without_a_value_is_not_complete(
    tmp_path: Path, data: bytes, words: str
) -> None:
    """Python refuses them: the end takes a value from above the last mark."""
    (tmp_path / "x.pt").write_bytes(data)
    inspection = inspect_path(tmp_path / "x.pt")
    assert not inspection.complete and words in inspection.problems[0]


def _holders(tensor: torch.Tensor) -> dict[str, tuple[Any, bool]]:
    """Values by name, each with whether it holds numbers of a tensor."""
    return {
        "list": ([tensor], True),
        "sparse": ({"w": tensor.to_sparse()}, True),
        "float8": ({"w": tensor.to(torch.float8_e4m3fn)}, True),
        "complex": ({"w": tensor.to(torch.complex64)}, True),
        "buffer": ({"w": torch.nn.Buffer(tensor)}, True),
        "optimizer without moments": ({"param_groups": [{"lr": 1e-3}], "state": {}}, True),
        "numbers": ({"last_epoch": 3, "base_lrs": [1e-3]}, False),
        "nothing": (None, False),
        "empty model": ({"model": {}, "epoch": 1}, False),
        "without bytes": ({"w": torch.empty(3, device="meta")}, False),
    }


def test_a_file_without_tensors_is_not_complete(tmp_path: Path) -> None:
    for name, (value, has_numbers) in _holders(torch.eye(4)).items():
        for is_zip in (True, False):
            path = tmp_path / f"{name}.pt"
            torch.save(value, path, _use_new_zipfile_serialization=is_zip)
            found = inspect_path(path, verify=True)
            problems = [] if has_numbers else [f"{name}.pt: it holds no tensors"]
            assert (found.problems, found.complete) == (problems, has_numbers), (name, is_zip)
        path.write_bytes(pickle.dumps({"a": 1}))
        assert not inspect_path(path).complete


def test_a_dtensor_in_an_old_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Its storage is inside of the call that would make it."""
    spec, rebuilt = "torch.distributed.tensor.DTensor", "torch._tensor._rebuild_from_type_v2"
    inner = CallResult(
        "torch._utils._rebuild_tensor_v2",
        (PersistentId(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4)), 0, (4,), (1,)),
    )
    made = CallResult(rebuilt, (Name("torch", "x"), spec, (), {"_local_tensor": inner}))
    assert [one.key[2] for one in storages_in({"w": [made, made]})] == ["0"]
