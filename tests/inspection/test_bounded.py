"""Small files that would take endless work: an inspection still ends, within 512 MiB."""

import json
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.toys.foreign import (
    Rebuilt,
    Storage,
    gguf_tensor,
    metadata,
    pickled,
    write_archive,
    write_gguf,
)


def shared_lists(folder: Path) -> Path:
    """20 KB that are 10^69 values when they are written out."""
    value: object = "x" * 1000
    for _ in range(30):
        value = [value] * 200
    state = {"model": {"a": 1}, **{f"key{n}": value for n in range(500)}}
    (folder / "x.pth").write_bytes(pickle.dumps(state, 2))
    return folder / "x.pth"


def shared_dictionaries(folder: Path) -> Path:
    value: object = {}
    for _ in range(60):
        value = {"a": value, "b": value, "c": value}
    state = {"model": value, "optimizer": {"state": value}, "epoch": 0, "step": value}
    (folder / "x.pth").write_bytes(pickle.dumps(state, 2))
    return folder / "x.pth"


def long_shared_texts(folder: Path) -> Path:
    value = {"model": {}, "texts": [["y" * 5_000_000] * 900] * 900}
    (folder / "x.pth").write_bytes(pickle.dumps(value, 2))
    return folder / "x.pth"


def empty_containers(folder: Path) -> Path:
    (folder / "x.pth").write_bytes(b"\x80\x02(" + b"}" * 9_900_000 + b"l.")
    return folder / "x.pth"


def names(folder: Path) -> Path:
    each = b"".join(b"cm%x\nn\n" % number for number in range(900_000))
    (folder / "x.pth").write_bytes(b"\x80\x02(" + each + b"l.")
    return folder / "x.pth"


def keys_of_one_hash(folder: Path) -> Path:
    prime = 2**61 - 1
    each = (b"\x8a\x0b" + (n * prime).to_bytes(11, "little") + b"N" for n in range(1, 500_000))
    (folder / "x.pth").write_bytes(b"\x80\x02}(" + b"".join(each) + b"u.")
    return folder / "x.pth"


def a_long_tuple_as_key(folder: Path) -> Path:
    data = b"\x80\x02(" + b"N" * 200_000 + b"tq\x010}(" + b"h\x01N" * 400_000 + b"u."
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


def many_digits(folder: Path) -> Path:
    state = {"model": {}, "epoch": 10**4299, "step": 7**9000, "lr": 7**90000}
    (folder / "x.pth").write_bytes(pickle.dumps(state, 2))
    return folder / "x.pth"


def a_million_pickles(folder: Path) -> Path:
    (folder / "x.pth").write_bytes(b"N." * 4_000_000)
    return folder / "x.pth"


def one_tensor_a_million_times(folder: Path) -> Path:
    storage = Storage(("storage", torch.FloatStorage, "0", "cpu", 1_000_000))
    one = pickled(Rebuilt(storage, shape=(1_000_000,)))[2:-1]
    data = b"\x80\x02](" + one + b"q\xfe" + b"h\xfe" * 1_900_000 + b"e."
    return write_archive(folder / "x.pth", data, data_0=bytes(4_000_000))


def views_of_one_storage(folder: Path) -> Path:
    storage = Storage(("storage", torch.FloatStorage, "0", "cpu", 1_000_000))
    views = [Rebuilt(storage, offset=n, shape=(1_000_000 - n,)) for n in range(40_000)]
    return write_archive(folder / "x.pth", pickled(views), data_0=bytes(4_000_000))


def axes(folder: Path) -> Path:
    tensor = Rebuilt(shape=(1,) * 200_000, strides=(1,) * 200_000)
    return write_archive(folder / "x.pth", pickled({"a": tensor}), data_0=bytes(16))


def entries(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        for number in range(60_000):
            archive.writestr(f"x/data/{number:x}", b"")
    return folder / "x.pth"


def small_tensors(folder: Path) -> Path:
    """150,000 tensors in 10 MB."""
    header = {
        f"{n:x}": {"dtype": "U8", "shape": [], "data_offsets": [n, n + 1]} for n in range(150_000)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    file = folder / "x.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(150_000))
    return file


def overlapping_tensors(folder: Path) -> Path:
    """100,000 tensors over the same bytes: the attack in the repository of safetensors."""
    entry = {"dtype": "F32", "shape": [200, 200], "data_offsets": [0, 160_000]}
    text = json.dumps({f"{n:x}": entry for n in range(70_000)}).encode()
    file = folder / "x.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(160_000))
    return file


def overlapping_tensors_of_gguf(folder: Path) -> Path:
    tensors = [gguf_tensor(f"{n:x}", [1_000_000], 24, 0) for n in range(100_000)]
    return write_gguf(folder / "x.gguf", tensors=tensors, data=bytes(1_000_000))


def missing_files(folder: Path) -> Path:
    weight_map = {f"{n:x}": f"file{n:x}" for n in range(200_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def small_lists(folder: Path) -> Path:
    (folder / "config.json").write_bytes(b'{"a":[' + b"[]," * 3_000_000 + b"[]]}")
    return folder


def a_tensor_that_is_not_there(folder: Path) -> Path:
    archive = write_archive(folder / "__0_0.distcp", pickled(Rebuilt()), data_0=bytes(16))
    content = metadata(size=[2**40], sizes=[2**40], length=archive.stat().st_size)
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    return folder


MAKERS: list[Callable[[Path], Path]] = [
    shared_lists, shared_dictionaries, long_shared_texts, empty_containers, names,
    keys_of_one_hash, a_long_tuple_as_key, many_digits, a_million_pickles,
    one_tensor_a_million_times, views_of_one_storage, axes, entries, small_tensors,
    overlapping_tensors, overlapping_tensors_of_gguf, missing_files, small_lists,
    a_tensor_that_is_not_there,
]  # fmt: skip


def limits() -> None:
    """Ten times the limits in the docs, because a slow or shared core needs more time.

    Endless work needs more than any limit.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))


@pytest.mark.parametrize("make", MAKERS)
def test_the_work_is_bounded_whatever_a_small_file_claims(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sftctl.cli.app import app\n"
        "try:\n"
        "    app(sys.argv[1:], prog_name='sftctl')\n"
        "finally:\n"  # not ru_maxrss, which begins with the peak of the process that forked
        "    status = Path('/proc/self/status').read_text()\n"
        "    print(status.split('VmHWM:')[1].split()[0], file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "inspect-ckpt", str(path), "--verify", "--tensors"]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, preexec_fn=limits)
        assert done.returncode in (0, 4), done.stderr[-2000:]
        assert b"Traceback" not in done.stderr
        assert int(done.stderr.splitlines()[-1]) < 512 << 10
