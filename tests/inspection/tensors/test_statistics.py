"""Statistics of tensors of every type and layout, compared with torch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.shard_writer import DTYPE_NAMES
from sftctl.inspection.formats.gguf import TYPES
from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.tensors.read import STRETCH, stretches
from sftctl.inspection.tensors.statistics import TensorStatistics, tensor_statistics
from tests.toys.checkpoints import ALONE, save_sharded
from tests.toys.ranks import run_ranks


def statistics_of(path: Path, stretch: int = STRETCH) -> dict[str, TensorStatistics]:
    return {one.name: one for one in tensor_statistics(inspect_path(path), stretch)}


def assert_like(one: TensorStatistics, tensor: torch.Tensor) -> None:
    values = tensor.double()
    assert one.shape == tuple(tensor.shape)
    assert one.norm == pytest.approx(values.norm().item())
    assert one.mean == pytest.approx(values.mean().item(), abs=1e-12)
    assert one.std == pytest.approx(values.std(correction=0).item(), abs=1e-12)
    assert (one.min, one.max) == (values.min().item(), values.max().item())
    assert (one.num_nan, one.num_inf) == (0, 0)
    assert one.histogram is not None and sum(one.histogram) == tensor.numel()


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_statistics_of_every_type_are_equal_to_torchs(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensor = (torch.randn(17, 11) * 3).to(dtype)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    assert_like(statistics_of(tmp_path / "x.safetensors", stretch=64)["model.x"], tensor)


def test_nan_and_infinity_are_counted_and_left_out(tmp_path: Path) -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")])
    save_file({"x": values, "none": values[1:2].clone()}, tmp_path / "x.safetensors")
    found = statistics_of(tmp_path / "x.safetensors")
    one, none = found["model.x"], found["model.none"]
    assert (one.num_nan, one.num_inf, one.mean, one.min, one.max) == (1, 2, 2.0, 1.0, 3.0)
    assert (none.num_nan, none.mean, none.histogram) == (1, None, None)


def test_the_histogram_counts_equal_bins_from_min_to_max(tmp_path: Path) -> None:
    save_file({"x": torch.arange(32.0), "one": torch.ones(5)}, tmp_path / "x.safetensors")
    found = statistics_of(tmp_path / "x.safetensors")
    expected, _ = np.histogram(np.arange(32.0), 16)
    assert found["model.x"].histogram == tuple(expected.tolist())
    assert found["model.one"].histogram == (5, *[0] * 15)


@pytest.mark.parametrize("old", [False, True])
def test_transposed_and_sliced_tensors_of_torch_save(tmp_path: Path, old: bool) -> None:
    base = torch.randn(40, 30)
    tensors = {"turned": base.T, "slice": base[3:9, 5:7], "row": base[4], "number": base[1, 1]}
    tensors["empty"] = base[:0]
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    found = statistics_of(tmp_path / "x.pth")
    for name in ("turned", "slice", "row", "number"):
        assert_like(found[f"model.{name}"], tensors[name])
    assert found["model.empty"].mean is None


def test_an_expanded_tensor_is_not_read(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1).expand(10)}, tmp_path / "x.pth")
    assert "its elements share memory" in str(statistics_of(tmp_path / "x.pth")["model.x"].error)


def test_statistics_of_a_distributed_checkpoint(distributed: Path) -> None:
    found = statistics_of(distributed)
    assert all(one.error is None for one in found.values())
    assert found["optimizer.0.step"].mean == 1.0
    assert found["model.model.norm.weight"].mean == pytest.approx(1.0, abs=0.01)


def test_the_parts_of_two_ranks_are_read_as_one_tensor(tmp_path: Path) -> None:
    """Two elements at a time, so that stretches begin and end inside parts and rows."""
    run_ranks(2, save_sharded, tmp_path, 3)
    types = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    folder, num_shared = tmp_path / "step-00000003", 0
    found = inspect_path(folder)
    tensors = found.tensors
    loaded = {name: torch.empty(t.shape, dtype=types[t.dtype]) for name, t in tensors.items()}
    tied = {name: loaded[target] for name, target in found.aliases.items()}
    load_tensors(folder, loaded | tied, ALONE)
    for name, tensor in tensors.items():
        if len(tensor.parts) > 1:
            read = np.concatenate(list(stretches(tensor, 2)))
            assert np.array_equal(read, loaded[name].double().flatten().numpy())
            num_shared += 1
    assert num_shared > 1


def test_gguf_types_have_the_sizes_of_the_library() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, (name, elements, num_bytes) in TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, GGML_QUANT_SIZES[kind]) == (name, (elements, num_bytes))


def test_a_gguf_file_of_plain_and_quantized_tensors(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    packed = quantize(values, GGMLQuantizationType.Q8_0)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list([f"word{n}" for n in range(50)])
    writer.add_tensor("blk.0.attn_q.weight", values)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    inspection = inspect_path(tmp_path / "x.gguf")
    assert inspection.format == "GGUF file"
    assert inspection.parameters_by_group == {"attention": 384, "mlp": 384}
    assert inspection.facts["config"]["gguf"]["llama.block_count"] == 2
    assert len(inspection.facts["config"]["gguf"]["tokenizer.ggml.tokens"]) == 8
    found = statistics_of(tmp_path / "x.gguf")
    assert_like(found["model.blk.0.attn_q.weight"], torch.from_numpy(values))
    back = torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q8_0))
    assert_like(found["model.blk.0.ffn_up.weight"], back)
    shutil.copy(tmp_path / "x.gguf", tmp_path / "cut.gguf")
    with (tmp_path / "cut.gguf").open("r+b") as file:
        file.truncate((tmp_path / "x.gguf").stat().st_size - 100)
    assert "it is truncated" in inspect_path(tmp_path / "cut.gguf").problems[0]
