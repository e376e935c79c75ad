"""load and source: models there and back, and sources that are refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sftctl.errors import ConfigError
from sftctl.model.load import (
    check_fit,
    load_architecture,
    load_model,
    load_pretrained,
    max_positions,
    save_architecture,
    save_pretrained,
)
from sftctl.model.presets import PRESETS
from sftctl.model.source import ModelSource, require_model_folder
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def model(bundled: ChatTokenizer) -> Any:
    return load_model("tiny", bundled, seed=3)


@pytest.fixture(scope="module")
def saved(model: Any, bundled: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory; do not write into it."""
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(model, bundled, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(name: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pretrained(str(name))
    return caught.value.message


# ---------------------------------------------------------------------------- there and back


def test_a_saved_model_is_loaded_as_it_was(model: Any, saved: Path) -> None:
    again = load_pretrained(str(saved)).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())


def test_a_saved_model_is_a_plain_directory_that_everyone_may_read(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert (saved / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_half_precision_weights_are_loaded_as_float32(
    bundled: ChatTokenizer, tmp_path: Path
) -> None:
    half = load_model("tiny", bundled, seed=3).to(torch.bfloat16)
    save_pretrained(half, bundled, tmp_path)
    again = load_pretrained(str(tmp_path))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_an_architecture_has_the_shapes_without_the_weights(model: Any, tmp_path: Path) -> None:
    save_architecture(model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    again = load_architecture(tmp_path)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_an_architecture_keeps_the_generation_settings(
    bundled: ChatTokenizer, tmp_path: Path
) -> None:
    model = load_model("tiny", bundled, seed=3)
    model.generation_config.eos_token_id = [5, 6]
    save_architecture(model, tmp_path)
    assert load_architecture(tmp_path).generation_config.eos_token_id == [5, 6]


# ---------------------------------------------------------------------------- names


def test_an_unknown_name_is_refused() -> None:
    assert refusal("qwen") == (
        f"qwen: neither a preset ({', '.join(PRESETS)}) nor a directory, "
        ".gguf or .pth file or "
        "owner/name on the hub"
    )


@pytest.mark.parametrize("name", ["./none", "/nowhere/none", "~/none", "a/b/c"])
def test_a_missing_path_is_refused(name: str) -> None:
    assert refusal(name) == f"{name}: no such directory"


def test_a_missing_gguf_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.gguf") == f"{tmp_path}/a.gguf: no such file"


def test_a_gguf_file_is_loaded_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert ModelSource.of(str(tmp_path / "a.gguf")) == ModelSource(
        str(tmp_path), {"gguf_file": "a.gguf", "trust_remote_code": False}
    )


def test_a_directory_is_never_searched_on_the_hub(tmp_path: Path) -> None:
    expected = {"local_files_only": True, "trust_remote_code": False}
    assert ModelSource.of(str(tmp_path)).arguments == expected
    by_name = ModelSource.of("owner/name")
    assert by_name.location == "owner/name"
    either = {"trust_remote_code": False}, expected
    assert by_name.arguments in either  # with a network, and without


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    expected = f"{tmp_path}: no config.json in this directory, so there is no model in it"
    assert refusal(tmp_path) == expected
    with pytest.raises(ConfigError) as caught:
        require_model_folder(str(tmp_path))
    assert caught.value.message == expected


@pytest.mark.usefixtures("without_network")
def test_a_hub_name_without_a_network_is_refused() -> None:
    assert refusal("nobody/nothing-at-all").startswith(
        "model nobody/nothing-at-all: can't be loaded: "
    )


# ---------------------------------------------------------------------------- damage


def test_a_directory_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    says = f"model {folder}: neither model.safetensors nor pytorch_model.bin nor an index of parts"
    assert refusal(folder).startswith(says)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("model.safetensors", b"not safetensors at all"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    begins = (f"model {folder}: can't be loaded: ", f"model {folder}: config.json is not ")
    assert refusal(folder).startswith(begins)


def test_weights_that_were_cut_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(folder).startswith(f"model {folder}: can't be loaded: ")


def gguf(path: Path) -> bytes:
    """A small .gguf file of a model without a tokenizer."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_block_count(1)
    writer.add_tensor("output.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_damaged_gguf_file_is_named_with_a_reason_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    whole = gguf(path)
    for damaged in (b"", b"GGUF", b"not a model at all", whole[:12], whole[:60], whole[:-100]):
        path.write_bytes(damaged)
        for load in (load_pretrained, load_tokenizer):
            with pytest.raises(ConfigError) as caught:
                load(str(path))
            assert (
                caught.value.message
                == f"{path}: can't be loaded: it is truncated or not a .gguf file"
            )
            assert caught.value.hint is not None
            assert caught.value.hint.startswith(f"`sftctl inspect-ckpt {path}` shows its contents")


def test_a_gguf_file_without_a_tokenizer_asks_for_one(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match="a.gguf: no tokenizer in it") as caught:
        load_tokenizer(str(tmp_path / "a.gguf"))
    assert "--tokenizer" in (caught.value.hint or "")


# ---------------------------------------------------------------------------- fit


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(bundled: ChatTokenizer) -> None:
    model = load_model("tiny", bundled, 0)
    model.resize_token_embeddings(100)
    with pytest.raises(ConfigError) as caught:
        check_fit(model, bundled, 16)
    assert caught.value.message == (
        f"tokenizer {bundled.name} has 2048 ids, the model has embeddings for 100"
    )
    assert caught.value.hint == (
        "prepare the data with the model's own tokenizer, without ids from 100 on"
    )


def test_examples_longer_than_the_models_positions_are_refused(
    model: Any, bundled: ChatTokenizer
) -> None:
    check_fit(model, bundled, 4096)
    with pytest.raises(ConfigError) as caught:
        check_fit(model, bundled, 4097)
    assert caught.value.message == "data.max_seq_len: 4097 is beyond the model's 4096 positions"


def test_a_model_without_positions_takes_examples_of_any_length(bundled: ChatTokenizer) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=bundled.vocab_size, hidden_size=16, n_layer=1, n_head=2)
    model = BloomForCausalLM(config)
    assert max_positions(model) is None
    check_fit(model, bundled, 10**9)
