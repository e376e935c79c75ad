"""Pickles that would run code and files that would fill the memory: both are read safely."""

import io
import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.pickles.opcodes import CallResult, read_pickle
from sftctl.inspection.pickles.torch_file import read_torch_file
from sftctl.inspection.pickles.window import Window

WATCHED = """
import json, sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(
    ("pickle.", "os.system", "subprocess.", "os.exec", "os.posix_spawn")) else None)
from sftctl.cli.app import app
codes = []
for path in sys.argv[1:]:
    try:
        app(["inspect-ckpt", path, "--verify", "--tensors", "--json"], prog_name="sftctl")
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps({"codes": codes, "seen": seen}), file=sys.stderr)
"""


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def traps(tmp_path: Path, trainer_output: Path, distributed: Path) -> list[Path]:
    """One checkpoint for every file that a tool would unpickle."""
    payload = Payload(tmp_path / "it-ran")
    state = {"model": {"a": torch.ones(2)}, "optimizer": payload, "epoch": 0, "step": 1}
    files = [tmp_path / name for name in ("a.pt", "a.pth", "a.bin", "old.pth", "bare.pth")]
    for file in files[:3]:
        torch.save(state, file)
    torch.save(state, files[3], _use_new_zipfile_serialization=False)
    files[4].write_bytes(pickle.dumps(payload, protocol=4))
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        folder = tmp_path / f"trap-{name}" / "checkpoint-4"
        shutil.copytree(trainer_output / "checkpoint-4", folder)
        torch.save({"x": payload}, folder / name)
        files.append(folder)
    folder = tmp_path / "dcp"
    shutil.copytree(distributed, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(payload))
    return [*files, folder]


def test_no_code_runs_and_nothing_is_unpickled(tmp_path: Path, traps: list[Path]) -> None:
    command = [sys.executable, "-c", WATCHED, *map(str, traps)]
    done = subprocess.run(command, capture_output=True, text=True)
    watched = json.loads(done.stderr.splitlines()[-1])
    assert not (tmp_path / "it-ran").exists()
    assert watched["seen"] == []
    assert watched["codes"] == [4] * len(traps), done.stderr
    assert done.stderr.count("refers to code: posix.system (not run)") == len(traps)
    assert '"step": 4' in done.stdout  # the rest is still shown


def test_a_checkpoint_with_code_is_incomplete_and_has_no_advice(traps: list[Path]) -> None:
    for trap in traps:
        inspection = inspect_path(trap)
        assert not inspection.complete and inspection.advice is None


def test_the_audit_hook_sees_an_unpickling(tmp_path: Path) -> None:
    code = WATCHED.replace("for path in sys.argv[1:]:", "import pickle\npickle.loads(b'cos\\n"
                           "getcwd\\n.')\nfor path in []:")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pickle.find_class" in json.loads(done.stderr.splitlines()[-1])["seen"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_of_any_protocol_stays_a_name(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "it-ran"
    (tmp_path / "x").write_bytes(pickle.dumps({"a": Payload(mark)}, protocol))
    with (tmp_path / "x").open("rb") as file:
        reading = read_pickle(file)
    assert reading.code == {"posix.system"}
    made = reading.value["a"]
    assert isinstance(made, CallResult)
    assert (made.by, made.arguments) == ("posix.system", (f"touch {mark}",))
    assert not mark.exists()


VALUES = [
    {"a": [1, -2, 2**70, 1.5, None, True, "ü", b"\0x"], 3: (1, (2, ())), "s": [{}]},
    [[[]]] * 3,
    {"shared": [1, 2]},
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES)
def test_plain_values_are_equal_to_the_pickled_ones(
    tmp_path: Path, value: Any, protocol: int
) -> None:
    if protocol < 3:
        value = json.loads(json.dumps(value, default=str)) if isinstance(value, list) else [1, "a"]
    (tmp_path / "x").write_bytes(pickle.dumps(value, protocol))
    with (tmp_path / "x").open("rb") as file:
        assert read_pickle(file).value == value


def test_every_opcode_is_known_or_refused() -> None:
    """The reader raises nothing but ValueError, whatever the opcode and its argument."""
    for opcode in pickletools.opcodes:
        for argument in (b"", b"\0", b"\1\0\0\0\0\0\0\0x", b"a\nb\n", b"'a'\n", b"1\n"):
            for before in (b"", b"(", b"N", b"(NN", b"]", b"}(NN"):
                data = before + opcode.code.encode("latin1") + argument + b"."
                path = Path("p")
                path.write_bytes(data)
                with path.open("rb") as file:
                    try:
                        read_pickle(file)
                    except ValueError:
                        continue


def test_a_pickle_of_too_many_opcodes_is_not_read() -> None:
    with pytest.raises(ValueError, match="more than 10 opcodes"):
        read_pickle(io.BytesIO(b"N" * 11 + b"."), max_opcodes=10)


def test_a_compressed_archive_is_not_opened(tmp_path: Path) -> None:
    """195 KB that would become 200 MB."""
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02" + b"0" * 200_000_000)
    assert file.stat().st_size < 300_000
    inspection = inspect_path(file)
    assert inspection.problems == [
        "bomb.pth: not a complete file of torch.save: data.pkl is compressed; torch.save never "
        "compresses"
    ]


def test_a_pickle_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "long.pth"
    with zipfile.ZipFile(file, "w") as archive, archive.open("x/data.pkl", "w") as entry:
        for _ in range(40):
            entry.write(b"N" * (1 << 20))
    with pytest.raises(CorruptCheckpoint, match="is too long"):
        read_torch_file(file)


def test_a_value_that_contains_itself_and_a_deep_value_are_read(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"model": {"a": torch.ones(2)}}
    endless["model"]["again"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    assert inspect_path(tmp_path / "endless.pth").num_parameters == 2
    deep = b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b"."
    (tmp_path / "deep.pth").write_bytes(deep)
    assert inspect_path(tmp_path / "deep.pth").format == "torch file"


def test_nested_tuples_are_not_hashed(tmp_path: Path) -> None:
    """Hashing recurses in C, without a limit."""
    (tmp_path / "x.pth").write_bytes(b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.")
    assert inspect_path(tmp_path / "x.pth").problems == ["x.pth: it holds no tensors"]


def test_a_window_reads_its_part_of_the_file_and_refuses_long_reads(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with (tmp_path / "x").open("rb") as file:
        window = Window(file, 2, 5)
        assert (window.read(2), window.read(), window.read()) == (b"23", b"456", b"")
        assert window.seek(-2, os.SEEK_END) == 3 and window.read() == b"56"
        with pytest.raises(ValueError, match="bytes 8 to 12 of 10"):
            Window(file, 8, 4)
        with pytest.raises(ValueError, match="bytes -1 to 1 of 10"):
            Window(file, -1, 2)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 30)
    with (tmp_path / "big").open("rb") as file, pytest.raises(ValueError, match="in one read"):
        Window(file).read()


def test_a_tensor_beyond_its_storage_is_a_problem(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "x.pth", "w") as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name).replace(b"K\x04\x85", b"K\x05\x85"))
    inspection = inspect_path(tmp_path / "x.pth")
    assert inspection.problems == ["x.pth: tensor a: its bytes are not in the file"]
