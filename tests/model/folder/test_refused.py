"""Models that can't be trained here are refused by their config.json, before their weights."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftctl.errors import ConfigError
from sftctl.inspection.inspect import inspect_path
from sftctl.model.folder.quantized import require_not_quantized
from sftctl.model.folder.remote_code import code_in
from sftctl.model.load import configuration, load_model, load_pretrained, save_pretrained
from sftctl.model.source import require_model_folder, require_tokenizer_folder
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 256}
KINDS = {
    "bert": "a masked language model",
    "xlm-roberta": "a masked language model",
    "t5": "an encoder-decoder model",
    "bart": "an encoder-decoder model",
    "qwen2_vl": "a model of text with images or sound",
    "gemma3": "a model of text with images or sound",
    "whisper": "an encoder-decoder model",
    "vit": "not a causal language model",
}


@pytest.mark.parametrize(("model_type", "what"), KINDS.items(), ids=KINDS)
def test_another_kind_of_model_is_named(
    bundled: ChatTokenizer, tmp_path: Path, model_type: str, what: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for load in (lambda name: configuration(name, bundled), load_pretrained):
        with pytest.raises(ConfigError, match=f"model {tmp_path}: {model_type} is {what}") as error:
            load(str(tmp_path))
        assert error.value.hint and "causal language model" in error.value.hint


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_moe"])
def test_a_causal_model_of_text_is_accepted(
    bundled: ChatTokenizer, tmp_path: Path, model_type: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert configuration(str(tmp_path), bundled).model_type == model_type


QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bits"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "gptq, 8 bits"),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8"),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "bitsandbytes, 4 bits",
    ),
    "int8": ({"quantization_config": {"load_in_8bit": True}}, "8 bits"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
    "older compressed-tensors": ({"compression_config": {"quant_method": "ct"}}, "ct"),
    "nested": ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
}


@pytest.mark.parametrize(("values", "method"), QUANTIZED.values(), ids=QUANTIZED)
def test_quantized_weights_are_named(
    bundled: ChatTokenizer, tmp_path: Path, values: dict[str, Any], method: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | SMALL | values))
    with pytest.raises(ConfigError) as error:
        configuration(str(tmp_path), bundled)
    assert f"its weights are quantized ({method})" in error.value.message


def test_an_empty_section_of_other_quantizers_means_nothing() -> None:
    require_not_quantized("model", {"quantization_config": None, "quantization": {}})


SHAPES: dict[str, dict[str, Any]] = {
    "heads that do not divide the size": {"hidden_size": 30, "head_dim": None},
    "no heads": {"num_attention_heads": 0},
    "a size that is a text": {"hidden_size": "wide"},
    "a negative size": {"intermediate_size": -5},
    "other sizes than the weights": {"hidden_size": 128},
    "another vocabulary than the weights": {"vocab_size": 31},
    "a size beyond memory": {"vocab_size": 10**15},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_shape_that_does_not_fit_is_a_configuration_error(
    bundled: ChatTokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    save_pretrained(load_model("tiny", bundled, seed=1), bundled, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError, match=f"{tmp_path}"):
        load_pretrained(str(tmp_path))


def test_the_python_files_of_a_model_are_named(tmp_path: Path) -> None:
    assert code_in(tmp_path) is None
    named = {"auto_map": {"AutoTokenizer": ["tok.A", None], "AutoModel": "o/r--modeling.B"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    expected = f"modeling.py of o/r, tok.py, named by auto_map in {tmp_path}/tokenizer_config.json"
    assert code_in(tmp_path) == expected
    shutil.copy(tmp_path / "tokenizer_config.json", tmp_path / "config.json")
    both = f"{tmp_path}/config.json and {tmp_path}/tokenizer_config.json"
    assert str(code_in(tmp_path)).endswith(f"named by auto_map in {both}")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 700\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_git_lfs_pointer_is_named_in_each_json_file(tmp_path: Path, name: str) -> None:
    for other in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / other).write_bytes(b"{}")
    (tmp_path / name).write_bytes(POINTER)
    for require in (require_model_folder, require_tokenizer_folder):
        with pytest.raises(ConfigError, match=f"{name}: a Git LFS pointer") as error:
            require(str(tmp_path))
        assert error.value.hint and "git lfs pull" in error.value.hint
    problems = [line for line in inspect_path(tmp_path).problems if line.startswith(f"{name}: ")]
    assert problems == [f"{name}: a Git LFS pointer, not the file itself"]


def test_a_model_folder_that_may_not_be_read_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every folder can be read, so the system's refusal is played here."""

    def refuse(*_: object, **__: object) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for require in (require_model_folder, require_tokenizer_folder):
        with pytest.raises(ConfigError, match=f"{tmp_path}: Permission denied") as error:
            require(str(tmp_path))
        assert error.value.hint
