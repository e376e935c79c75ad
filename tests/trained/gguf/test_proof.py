"""A run is written as .gguf; a file that reads back differently is not kept."""

import resource
from pathlib import Path

import gguf
import pytest
from tokenizers import pre_tokenizers

from sftctl.errors import CheckpointError, ConfigError
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.trained.export import export_gguf
from sftctl.trained.gguf import proof as proof_module


@pytest.mark.parametrize(
    ("dtype", "kind"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")]
)
def test_a_run_is_written_with_template_and_special_tokens(
    run: Path, tmp_path: Path, dtype: str, kind: str
) -> None:
    proof = export_gguf(run, tmp_path / "out", dtype)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.gguf", "Modelfile", "README.md",
    }  # fmt: skip
    assert (dtype != "f32") or proof.largest_difference < 1e-4
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == kind and types["blk.0.attn_norm.weight"] == "F32"
    tokenizer = load_tokenizer(str(tmp_path / "out/model.gguf"))
    ours = load_tokenizer(str(run / "final"))
    assert tokenizer.hf.chat_template == ours.hf.chat_template
    assert tokenizer.hf.eos_token_id == ours.hf.eos_token_id
    text = "<|im_start|>user\n12 + 30 = ?<|im_end|>\n"
    assert tokenizer.encode(text).tolist() == ours.encode(text).tolist()
    assert reader.get_field("tokenizer.ggml.pre").contents() == "smollm"


def test_the_card_and_the_modelfile_say_how_to_use_the_file(run: Path, tmp_path: Path) -> None:
    export_gguf(run, tmp_path / "out", "f16")
    card = (tmp_path / "out/README.md").read_text()
    assert "llama-cli -m model.gguf" in card and "library_name: gguf" in card
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in lines


def test_a_file_that_reads_back_differently_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_module, "rounded", lambda weight, kind: weight + 0.01)
    with pytest.raises(CheckpointError, match="is not what was written; nothing was written"):
        export_gguf(run, tmp_path / "out", "f32")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_reads_back_differently_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_tokenizer(str(run / "final"))
    other.hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    monkeypatch.setattr(proof_module, "load_tokenizer", lambda *_, **__: other)
    with pytest.raises(CheckpointError, match="its tokenizer encodes .* differently"):
        export_gguf(run, tmp_path / "out", "f32")
    assert list(tmp_path.iterdir()) == []


def test_without_room_on_the_disk_nothing_is_left(run: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: numpy hides both in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(
            CheckpointError, match="out: can't be written: .*(is it full|too large)"
        ):
            export_gguf(run, tmp_path / "out", "f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["int8", "q4_0", ""])
def test_a_type_that_is_not_written_is_refused(run: Path, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match="--dtype: expected float32 or .* or q8_0, got"):
        export_gguf(run, tmp_path / "out", dtype)


def test_an_output_that_exists_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out: exists already"):
        export_gguf(run, tmp_path / "out", "f32")
    assert list((tmp_path / "out").iterdir()) == []
