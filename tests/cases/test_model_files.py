"""Complete, cut, split and quantized model files: train and inspect-ckpt agree."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sftctl import jsonio
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError
from sftctl.inspection.inspect import inspect_path
from sftctl.model.load import load_pretrained, require_names
from tests.toys.commands import Result
from tests.toys.foreign import gguf_key, gguf_tensor, gguf_text, write_gguf
from tests.toys.models import (
    FAMILIES,
    Tensors,
    toy_base,
    with_tokenizer,
    write_base,
    write_gguf_model,
)

Sftctl = Callable[..., Result]
Change = Callable[[Tensors], Tensors]
SHORT = ("--max-steps", "1", "--batch-size", "4")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4096\n"
LFS = "a Git LFS pointer, not the file itself"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma", "gemma2", "mistral", "olmo2", "granite"])
def test_a_whole_model_is_complete_for_every_family(
    tmp_path: Path, family: str, tied: bool
) -> None:
    model = toy_base(family, tie_word_embeddings=tied, vocab_size=2048)
    folder = with_tokenizer(write_base(tmp_path / "m", model))
    found = inspect_path(folder)
    assert (found.problems, found.notes, found.complete) == ([], [], True)
    assert found.advice == f"`sftctl train --model {folder}` starts a run from its weights"


GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "ffn_dim": 32, "word_embed_proj_dim": 16}


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_a_family_without_a_list_of_names_is_complete(tmp_path: Path, family: str) -> None:
    folder = write_base(tmp_path / "m", toy_base(family, **GPT2))
    assert inspect_path(folder).problems == []


LOST: dict[str, tuple[Change, dict[str, object]]] = {
    "a layer more in config.json": (lambda tensors: tensors, {"num_hidden_layers": 3}),
    "no head": (lambda tensors: _without(tensors, "lm_head"), {}),
    "a matrix less in each layer": (lambda tensors: _without(tensors, "down_proj"), {}),
    "no last norm": (lambda tensors: _without(tensors, "model.norm"), {}),
    "another width": (lambda tensors: tensors, {"intermediate_size": 48}),
    "another vocabulary": (lambda tensors: tensors, {"vocab_size": 70}),
    "a head that is not the embedding": (
        lambda tensors: {**tensors, "lm_head.weight": torch.ones(64, 16)},
        {"tie_word_embeddings": True},
    ),
    "an adapter that is not merged": (
        lambda tensors: {**tensors, "model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(1, 16)},
        {},
    ),
}


def _without(tensors: Tensors, part: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize("kind", LOST)
def test_what_train_refuses_is_incomplete_to_inspect_ckpt(tmp_path: Path, kind: str) -> None:
    change, config = LOST[kind]
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base(), change, **config))
    found = inspect_path(folder)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    with pytest.raises(ConfigError) as planned:  # --dry-run reads headers alone
        require_names(str(folder), AutoConfig.from_pretrained(folder))
    assert planned.value.message == refused.value.message
    [problem] = found.problems
    assert problem.startswith("config.json: ") and not found.complete and found.advice is None
    said = refused.value.message.removeprefix(f"model {folder}: ")
    assert problem == f"config.json: {said}"


def _pickled(folder: Path, change: Change, *, legacy: bool = False) -> Path:
    """The folder with its changed weights in pytorch_model.bin, in torch's older format or not."""
    tensors = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    return folder


HEADS: dict[str, tuple[Change, dict[str, object], str | None]] = {
    "tied, as config.json says": (
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]},
        {"tie_word_embeddings": True}, None,
    ),
    "tied and absent": (
        lambda tensors: _without(tensors, "lm_head"), {"tie_word_embeddings": True}, None,
    ),
    "tied, and no embedding": (
        lambda tensors: _without(tensors, "embed_tokens"), {"tie_word_embeddings": True}, None,
    ),
    "no embedding, where it is not tied": (
        lambda tensors: _without(tensors, "embed_tokens"), {},
        "1 tensor of the model is not in the files: model.embed_tokens.weight",
    ),
    "of its own, where it is tied": (
        lambda tensors: {**tensors, "lm_head.weight": torch.ones_like(tensors["lm_head.weight"])},
        {"tie_word_embeddings": True},
        "tie_word_embeddings is true, but the head in the files is not the embedding",
    ),
    "absent, where it is not tied": (
        lambda tensors: _without(tensors, "lm_head"), {},
        "1 tensor of the model is not in the files: lm_head.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_in_pickled_weights_is_judged_as_in_safetensors(
    tmp_path: Path, kind: str, legacy: bool
) -> None:
    change, config, says = HEADS[kind]
    folder = write_base(tmp_path / "m", toy_base(vocab_size=2048), lambda t: t, **config)
    _pickled(with_tokenizer(folder), change, legacy=legacy)
    found, settings = inspect_path(folder), AutoConfig.from_pretrained(folder)
    if says is None:
        require_names(str(folder), settings)
        load_pretrained(str(folder))
        assert (found.problems, "sftctl train" in (found.advice or "")) == ([], True)
        return
    assert found.problems == [f"config.json: {says}"]
    with pytest.raises(ConfigError) as planned:
        require_names(str(folder), settings)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert planned.value.message == refused.value.message == f"model {folder}: {says}"


Config = dict[str, object]
UNLOADABLE: dict[str, tuple[Callable[[Config], str | Config], str, str]] = {
    "an activation of nobody": (
        lambda c: {**c, "hidden_act": "snake"},
        "config.json: hidden_act is 'snake', which transformers does not know",
        "correct hidden_act in config.json",
    ),
    "a rotation of nobody": (
        lambda c: {**c, "rope_parameters": {"rope_type": "magic", "rope_theta": 1e4, "factor": 2}},
        "config.json: rope_parameters.rope_type is 'magic', which transformers does not know",
        "correct rope_parameters.rope_type in config.json",
    ),
    "a kind of attention": (
        lambda c: {**c, "_attn_implementation": "flash_attention_2"},
        "config.json asks for a kind of attention that is not installed here: ",
        'remove "attn_implementation" and "_attn_implementation" from config.json',
    ),
    "a byte order mark": (
        lambda c: "\ufeff" + jsonio.dump_canonical(c).decode(),
        "config.json begins with a byte order mark",
        "save it as UTF-8 without one",
    ),
    "half of it": (lambda c: '{"model_type": ', "config.json is not JSON: ", "correct it, or copy"),
    "a list": (lambda c: "[1, 2]", "config.json is not a JSON object", "copy the model again"),
    "no type": (
        lambda c: {key: value for key, value in c.items() if key != "model_type"},
        "config.json has no model_type",
        'add it, such as "model_type": "llama", if you know which model it is',
    ),
    "an empty quantizer": (
        lambda c: {**c, "quantization_config": {}},
        "config.json has an empty quantization_config, so how its weights are stored is not known",
        "remove quantization_config from config.json if they are not quantized",
    ),
    "a number as text": (
        lambda c: {**c, "hidden_size": "16"},
        "config.json: hidden_size is '16', not a size",
        'write "hidden_size": 16 in config.json, without quotes',
    ),
}


@pytest.mark.parametrize(("change", "says", "hint"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_a_config_json_that_can_not_be_used_has_a_hint_what_to_change(
    tmp_path: Path, change: Callable[[Config], str | Config], says: str, hint: str
) -> None:
    folder = write_base(tmp_path / "m", toy_base(), lambda tensors: tensors)
    changed = change(jsonio.read_object(folder / "config.json", ConfigError))
    text = changed if isinstance(changed, str) else jsonio.dump_canonical(changed).decode()
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert refused.value.message.startswith(f"model {folder}: {says}")
    assert refused.value.hint is not None and refused.value.hint.startswith(hint)


def test_pickled_weights_that_hold_code_say_so_without_codes_of_the_terminal(
    tmp_path: Path,
) -> None:
    folder = write_base(tmp_path / "m", toy_base(), lambda tensors: tensors)
    (folder / "model.safetensors").unlink()
    torch.save({"x": print}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    reason = "its pickled weights refer to code (print), which is never run"
    assert refused.value.message == f"model {folder}: {reason}"
    hint = f"take .safetensors weights; `sftctl inspect-ckpt {folder}` names the code"
    assert refused.value.hint == hint


def test_prefixes_are_noted_and_the_advice_works(tmp_path: Path, sftctl: Sftctl) -> None:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    folder = write_base(
        tmp_path / "m", base, lambda tensors: {f"_orig_mod.{n}": t for n, t in tensors.items()}
    )
    found = inspect_path(with_tokenizer(folder))
    assert found.complete and "without the prefix `_orig_mod.`" in found.notes[0]
    result = sftctl("train", "--model", folder, *SHORT, "--output-dir", tmp_path / "run")
    assert result.exit_code == 0
    assert f"warning: model {folder}: 21 tensors loaded without the prefix" in result.stderr


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path, sftctl: Sftctl) -> None:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    folder = write_base(tmp_path / "m", base, lambda tensors: _without(tensors, "down_proj"))
    arguments = ("train", "--model", with_tokenizer(folder), *SHORT, "--output-dir", tmp_path / "r")
    results = [sftctl(*arguments, *more) for more in (["--dry-run"], [])]
    assert [result.exit_code for result in results] == [2, 2]
    assert results[0].error == results[1].error
    assert "2 tensors of the model are not in the files" in results[0].error
    assert not (tmp_path / "r").exists()


def test_a_prefix_that_is_the_name_of_the_body_is_accepted_by_both(tmp_path: Path) -> None:
    folder = write_base(
        tmp_path / "m", toy_base(), lambda tensors: {f"model.{n}": t for n, t in tensors.items()}
    )
    assert inspect_path(with_tokenizer(folder)).problems == []
    assert load_pretrained(str(folder)) is not None


def test_what_the_libraries_warn_about_is_a_note_of_inspect_ckpt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base(vocab_size=2048)))
    file = folder / "config.json"
    file.write_bytes(jsonio.dump_line(jsonio.loads(file.read_bytes()) | {"pad_token_id": -1}))
    found = inspect_path(folder)
    assert capfd.readouterr().err == ""
    assert any("pad_token_id must be" in note for note in found.notes)
    assert len({*found.notes}) == len(found.notes) and found.problems == []


UNREAD = "neither model.safetensors nor pytorch_model.bin nor an index of parts is in it, and train"
OTHER_NAMES = {
    "consolidated.safetensors": "rename the file, if it has tensors of these names",
    "model.fp16.safetensors": "rename the file, if it has tensors of these names",
    "pytorch_model.pt": "rename the file, if it has tensors of these names",
    "x.gguf": "name the .gguf file itself: ",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_weights_under_a_name_that_is_not_read_are_refused_alike(
    tmp_path: Path, sftctl: Sftctl, name: str
) -> None:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    folder = with_tokenizer(write_base(tmp_path / "m", base))
    (folder / "model.safetensors").rename(folder / name)
    arguments = ("train", "--model", folder, *SHORT, "--output-dir", tmp_path / "run")
    results = [sftctl(*arguments, "--dry-run"), sftctl(*arguments)]
    for result in results:
        assert result.exit_code == 2
        assert result.error.startswith(f"error: model {folder}: {UNREAD} reads no other file")
        assert f"hint: {OTHER_NAMES[name]}" in result.stderr
    assert not (tmp_path / "run").exists()
    if name.endswith(".safetensors"):
        assert inspect_path(folder).problems == [results[0].error.partition(f"{folder}: ")[2]]


def test_a_dry_run_takes_a_folder_without_weights(tmp_path: Path, sftctl: Sftctl) -> None:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    folder = with_tokenizer(write_base(tmp_path / "m", base))
    (folder / "model.safetensors").unlink()
    assert sftctl("train", "--model", folder, *SHORT, "--dry-run").exit_code == 0


def test_what_transformers_warns_about_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = write_base(tmp_path / "m", toy_base()), list[str]()
    file = folder / "config.json"
    values = jsonio.loads(file.read_bytes())
    file.write_bytes(jsonio.dump_line(values | {"pad_token_id": -1}))
    load_pretrained(str(folder), said.append)
    said += capsys.readouterr().err.removeprefix("warning: ").splitlines()
    assert all(line.startswith(f"model {folder}: ") for line in said)
    assert any("pad_token_id must be" in line for line in said)
    for change, words in (
        ({"num_hidden_layers": "two"}, r"config\.json: "),
        ({"model_type": "llama9"}, r"transformers .* does not know the model type llama9$"),
    ):
        file.write_bytes(jsonio.dump_line(values | change))
        with pytest.raises(ConfigError, match=words):
            load_pretrained(str(folder), said.append)


def test_a_file_of_a_model_folder_is_not_called_missing(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "m", toy_base())
    (alone := tmp_path / "x.safetensors").write_bytes(b"")
    for file, hint in (
        (folder / "model.safetensors", f"did you mean its folder, {folder}?"),
        (alone, f"`sftctl inspect-ckpt {alone}` says what it is"),
    ):
        with pytest.raises(ConfigError, match="a file, but not a .gguf or .pth file") as refused:
            load_pretrained(str(file))
        assert refused.value.hint == hint


QUANTIZED: dict[str, tuple[dict[str, object], str]] = {
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantized by awq"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "quantized by gptq"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "quantized by fp8"),
    "bnb": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantized by bitsandbytes",
    ),
    "mlx": ({"quantization": {"bits": 4, "group_size": 64}}, "quantized to 4 bits"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_model_is_named_and_not_advised_for_training(tmp_path: Path, kind: str) -> None:
    settings, name = QUANTIZED[kind]
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base()))
    config = jsonio.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(jsonio.dump_line(config | settings))
    found = inspect_path(folder)
    assert name in found.format
    assert found.advice == f"`sftctl inspect-ckpt {folder} --tensors` shows its tensors"
    assert "can't be trained here" in found.notes[0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_quantized_weights_that_config_json_does_not_mention_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    def change(tensors: Tensors) -> Tensors:
        return {n: t.to(dtype) if "proj" in n else t for n, t in tensors.items()}

    folder = with_tokenizer(write_base(tmp_path / "m", toy_base(), change))
    name = str(dtype).removeprefix("torch.")
    found = inspect_path(folder)
    assert "--tensors" in str(found.advice) and any(f"type {name}" in note for note in found.notes)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert refused.value.message.startswith(f"model {folder}: its weights are of type {name}")


def test_a_mask_of_attention_in_the_files_is_no_quantized_weight(tmp_path: Path) -> None:
    """Files of before 2023 hold GPT-2's mask, which is not a weight."""
    mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    folder = write_base(
        tmp_path / "m", toy_base("gpt2", **GPT2), lambda t: t | {"transformer.h.0.attn.bias": mask}
    )
    load_pretrained(str(folder))
    found = inspect_path(with_tokenizer(folder))
    assert (found.problems, found.format) == ([], "Hugging Face model directory")


def test_scales_that_would_not_be_used_are_refused(tmp_path: Path) -> None:
    scales = {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}
    folder = write_base(tmp_path / "m", toy_base(), lambda tensors: tensors | scales)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert "quantized" in refused.value.message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_named_by_both(tmp_path: Path, name: str) -> None:
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base()))
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    assert inspect_path(folder).problems == [f"{name}: {LFS}"]
    assert inspect_path(folder).damage_hint == "`git lfs pull` in its folder downloads the files"
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(folder))
    assert refused.value.message == f"{folder / name}: {LFS}"


def test_missing_parts_and_indexes_are_named(tmp_path: Path) -> None:
    toy_base().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    folder = with_tokenizer(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    parts = sorted(folder.glob("model-*.safetensors"))
    assert inspect_path(folder).problems == []
    index.rename(tmp_path / "kept")
    assert inspect_path(folder).problems == [f"{index.name}: missing"]
    parts[1].unlink()
    assert inspect_path(folder).problems == [f"{parts[1].name}: missing"]
    (tmp_path / "kept").rename(index)
    assert inspect_path(folder).problems == [f"{parts[1].name}: missing, {index.name} refers to it"]


def test_a_warning_about_a_model_is_told_once(tmp_path: Path, sftctl: Sftctl) -> None:
    base = toy_base("qwen3", vocab_size=2048, max_position_embeddings=2048)
    base.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"more": torch.zeros(2)}, weights, {"format": "pt"})
    options = ("--model", tmp_path / "m", "--tokenizer", SAMPLE_TOKENIZER, *SHORT)
    result = sftctl("train", *options, "--output-dir", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("1 tensor in the files not used: more") == 1


# ---------------------------------------------------------------------------- GGUF


def whole_gguf(file: Path, *, template: bool = True) -> Path:
    """A .gguf model with the sample's vocabulary, which a run can start from."""
    base = toy_base("qwen3", vocab_size=2048, max_position_embeddings=2048)
    write_gguf_model(file, base, tokenizer=SAMPLE_TOKENIZER if template else None)
    return file


def test_a_whole_gguf_file_is_trained_as_the_advice_says(tmp_path: Path, sftctl: Sftctl) -> None:
    file = whole_gguf(tmp_path / "x.gguf")
    found = inspect_path(file)
    assert (found.format, found.complete, found.notes) == ("GGUF file", True, [])
    assert found.advice == f"`sftctl train --model {file}` starts a run from its weights"
    result = sftctl("train", "--model", file, *SHORT, "--output-dir", tmp_path / "run")
    assert result.exit_code == 0, result.stderr


def test_what_a_gguf_file_lacks_is_named(tmp_path: Path, sftctl: Sftctl) -> None:
    file = whole_gguf(tmp_path / "x.gguf", template=False)
    found = inspect_path(file)
    assert found.notes == ["no tokenizer in it: train needs --tokenizer DIR"]
    assert found.advice == f"`sftctl inspect-ckpt {file} --tensors` shows its tensors"
    assert sftctl("inspect-ckpt", file, "--tensors").exit_code == 0


@pytest.mark.parametrize(
    "fault", ["its kind is 'foo!', not gpt2, llama, t5, gemma4", "merge 0 is 'aaa', not two tokens"]
)
def test_a_gguf_files_bad_tokenizer_is_named_alike(
    tmp_path: Path, fault: str, sftctl: Sftctl
) -> None:
    file = whole_gguf(tmp_path / "x.gguf")
    content = file.read_bytes()
    if "kind" in fault:
        key = gguf_text("tokenizer.ggml.model") + struct.pack("<I", 8)
        changed = content.replace(key + gguf_text("gpt2"), key + gguf_text("foo!"))
    else:
        begin = content.index(gguf_text("tokenizer.ggml.merges")) + 45
        (length,) = struct.unpack_from("<Q", content, begin)
        changed = content[: begin + 8] + b"a" * length + content[begin + 8 + length :]
    assert changed != content and len(changed) == len(content)
    file.write_bytes(changed)
    [note] = inspect_path(file).notes
    assert fault in note and note.endswith(": train needs --tokenizer DIR")
    result = sftctl("train", "--model", file, *SHORT, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.error.startswith(
        f"error: {file}: {note.removesuffix(': train needs --tokenizer DIR')}"
    )


def architecture(name: str) -> bytes:
    return gguf_key("general.architecture", 8, gguf_text(name))


def number(name: str, value: int) -> bytes:
    return gguf_key(name, 4, struct.pack("<I", value))


def text(name: str, value: str) -> bytes:
    return gguf_key(name, 8, gguf_text(value))


ONE_TENSOR = {"tensors": [gguf_tensor("token_embd.weight", [8, 4])], "data": bytes(128)}


def part(folder: Path, no: int, count: int) -> Path:
    keys = [architecture("llama"), number("split.no", no), number("split.count", count)]
    keys.append(number("split.tensors.count", count))
    tensors = [gguf_tensor(f"t{no}.weight", [8, 4])]
    file = folder / f"m-{no + 1:05d}-of-{count:05d}.gguf"
    return write_gguf(file, keys, tensors, data=bytes(128))


def two_parts(folder: Path) -> Path:
    part(folder, 1, 2)
    return part(folder, 0, 2)


def wrote(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def keyed(*keys: bytes, with_tensor: bool = True) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        rest = ONE_TENSOR if with_tensor else {}
        return write_gguf(folder / "x.gguf", keys, **rest)  # type: ignore[arg-type]

    return make


SPECIAL: dict[str, tuple[Callable[[Path], Path], str, str | None, str]] = {
    # how it is made, its format, its problem, what train says
    "both parts": (two_parts, "GGUF split model, part 1 of 2", None, "part 1 of a model in 2"),
    "one part of three": (
        lambda folder: part(folder, 1, 3),
        "GGUF split model, part 2 of 3",
        "m-00001-of-00003.gguf: missing",
        "part 2 of a model in 3 parts",
    ),
    "big-endian": (
        wrote("x.gguf", b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(32)),
        "GGUF file, big-endian, version 3", None, "big-endian numbers",
    ),
    "version 1": (
        wrote("x.gguf", b"GGUF" + struct.pack("<III", 1, 0, 0)),
        "GGUF file, version 1", "x.gguf: GGUF version 1 (2023)", "GGUF version 1 (2023)",
    ),
    "version 99": (
        wrote("x.gguf", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
        "GGUF file, version 99", "x.gguf: GGUF version 99, which is not known", "GGUF version 99",
    ),
    "another architecture's tensors": (
        keyed(architecture("mamba"), number("mamba.block_count", 1)),
        "GGUF file", "x.gguf: 7 tensors are missing: output_norm.weight", "",
    ),
    "GGML of 2023": (
        wrote("x.gguf", b"tjgg" + bytes(60)), "GGML file", "x.gguf: a GGML file", "a GGML file",
    ),
    "a pointer": (wrote("x.gguf", POINTER.encode()), "Git LFS pointer", f"x.gguf: {LFS}", LFS),
    "an adapter": (
        keyed(architecture("llama"), text("general.type", "adapter"), text("adapter.type", "lora")),
        "GGUF LoRA adapter file", None, "an adapter: merge it into its base first",
    ),
    "a projector": (
        keyed(architecture("clip"), text("general.type", "mmproj")),
        "GGUF mmproj file", None, "of type mmproj, not a model",
    ),
    "cut in its header": (
        wrote("x.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(3)),
        "GGUF file", "x.gguf: not a complete .gguf file: it ends within its header", "",
    ),
    "cut in its data": (
        lambda folder: write_gguf(
            folder / "x.gguf", [architecture("llama")], [gguf_tensor("a.weight", [8, 4])],
            data=bytes(100),
        ),
        "GGUF file", "x.gguf: not a complete .gguf file: a.weight ends at byte", "",
    ),
    "half of its tensors": (
        keyed(architecture("llama"), number("llama.block_count", 1)),
        "GGUF file", "x.gguf: 10 tensors are missing: output_norm.weight", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_gguf_file_that_is_not_a_whole_model(tmp_path: Path, kind: str, sftctl: Sftctl) -> None:
    make, format, problem, train = SPECIAL[kind]
    path = make(tmp_path)
    found = inspect_path(path)
    assert found.format == format
    if problem is None:
        assert (found.problems, found.complete) == ([], True)
        assert "sftctl train" not in (found.advice or "")
    else:
        assert found.problems[0].startswith(problem) and not found.complete
    assert sftctl("inspect-ckpt", path).exit_code == (4 if problem else 0)
    result = sftctl("train", "--model", path, *SHORT, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.error.startswith(f"error: {path}: {train}")


def test_tensors_of_all_parts_are_shown(tmp_path: Path) -> None:
    found = inspect_path(two_parts(tmp_path))
    assert [*found.tensors] == ["model.t0.weight", "model.t1.weight"]
    assert len(found.files) == 2


def test_an_adapter_as_a_model_names_its_base(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_bytes(jsonio.dump_line(config))
    with pytest.raises(ConfigError) as refused:
        load_pretrained(str(tmp_path))
    assert refused.value.message == f"{tmp_path}: an adapter of owner/base, not a model"
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == {"a"}


OF_OTHERS: dict[str, tuple[str, str]] = {
    "lit_model.pth": ("LitGPT checkpoint", "lit_model.pth: not weights that sftctl reads; `litgpt"),
    "checkpoint_last.pt": ("fairseq checkpoint", "checkpoint_last.pt: not weights that sftctl rea"),
    "consolidated.00.pth": ("consolidated checkpoint", "consolidated.00.pth: not weights that sft"),
    "flax_model.msgpack": ("Flax model directory", "flax_model.msgpack: not weights that sftctl r"),
    "tf_model.h5": ("TensorFlow model directory", "tf_model.h5: not weights that sftctl reads"),
    "model.onnx": ("ONNX model directory", "model.onnx: not weights that sftctl reads"),
    "mine.pt": ("folder of weights", "model.safetensors: missing; in their place: mine.pt"),
    "notes.txt": ("Hugging Face model directory", "model.safetensors: missing; no weights are he"),
}


@pytest.mark.parametrize(("name", "expected"), OF_OTHERS.items(), ids=OF_OTHERS)
def test_weights_that_are_not_read_are_named(
    tmp_path: Path, sftctl: Sftctl, name: str, expected: tuple[str, str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / name)
    found = inspect_path(tmp_path)
    assert found.format.startswith(expected[0]) and not found.complete
    [problem] = found.problems
    assert problem.startswith(expected[1])
    result = sftctl("inspect-ckpt", tmp_path)
    assert result.exit_code == 4
    assert ("copy or download it again" in result.stderr) == (name == "notes.txt")


@pytest.mark.parametrize("name", ["epoch=1-step=10.ckpt", "x.nemo", "damaged.gguf"])
def test_a_folder_around_a_checkpoint_of_one_file_names_the_file(
    tmp_path: Path, sftctl: Sftctl, name: str
) -> None:
    (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    result = sftctl("inspect-ckpt", tmp_path)
    assert result.exit_code == 4
    assert result.error == f"error: {tmp_path}: a folder with 1 file of weights, such as {name}"
    assert f"hint: inspect the file: `sftctl inspect-ckpt {tmp_path / name}`" in result.stderr


EDITS: dict[str, tuple[Config, str]] = {
    "another vocabulary": ({"vocab_size": 70}, 'set "vocab_size": 64 in config.json'),
    "a layer more": ({"num_hidden_layers": 3}, 'set "num_hidden_layers": 2 in config.json if'),
    "a tied head": ({"tie_word_embeddings": True}, 'set "tie_word_embeddings": false in config'),
    "no type": ({"model_type": None}, 'add it to config.json, such as "model_type": "llama"'),
    "a size as text": ({"hidden_size": "16"}, 'write "hidden_size": 16 in config.json'),
    "a size with a fraction": ({"hidden_size": 16.5}, "correct hidden_size in config.json"),
    "a tie as text": ({"tie_word_embeddings": "false"}, 'write "tie_word_embeddings": true or'),
    "a size beyond all": ({"hidden_size": 1e30}, "correct hidden_size in config.json"),
    "no layer": ({"num_hidden_layers": 0}, "correct num_hidden_layers in config.json"),
    "the type of another family": ({"model_type": "gpt2"}, "correct model_type in config.json"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_wrong_value_in_config_json_has_a_hint_what_to_edit(
    tmp_path: Path, sftctl: Sftctl, kind: str
) -> None:
    values, hint = EDITS[kind]
    folder = write_base(tmp_path / "m", toy_base(), lambda tensors: tensors)
    config = jsonio.read_object(folder / "config.json", ConfigError)
    (folder / "config.json").write_bytes(jsonio.dump_canonical({**config, **values}))
    result = sftctl("inspect-ckpt", folder)
    assert result.exit_code == 4
    assert f"hint: {hint}" in result.stderr and "download it again" not in result.stderr


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama9"])
def test_code_of_its_own_is_noted_and_judged_as_train_judges_it(
    tmp_path: Path, family: str
) -> None:
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base(vocab_size=2048), lambda t: t))
    config = jsonio.read_object(folder / "config.json", ConfigError)
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}, "model_type": family}
    if family == "gpt2":
        folder = with_tokenizer(
            write_base(tmp_path / "g", toy_base("gpt2", **GPT2, vocab_size=2048))
        )
        config = jsonio.read_object(folder / "config.json", ConfigError)
    (folder / "config.json").write_bytes(jsonio.dump_canonical({**config, **code}))
    found = inspect_path(folder)
    assert found.problems == []
    named = f"modeling_x.py, named by auto_map in {folder / 'config.json'}"
    if family != "llama9":
        assert found.notes == [f"not run: {named}; transformers' own classes are used"]
        assert found.advice == f"`sftctl train --model {folder}` starts a run from its weights"
        load_pretrained(str(folder))
    else:
        assert "does not know the model type llama9; a newer" in found.notes[0]
        assert "sftctl train" not in (found.advice or "")


NOT_PROMISED: dict[str, tuple[dict[str, object], str | None, str | None]] = {
    "gpt2 over llama's tensors": (
        {"model_type": "gpt2"}, "config.json: model_type is gpt2, but the files have no wte.weight",
        None,
    ),
    "a size as text": ({"hidden_size": "16"}, "config.json: hidden_size is '16', not a size", None),
    "no layer": (
        {"num_hidden_layers": 0}, "config.json: num_hidden_layers is 0, not a size", None
    ),
    "no type": ({"model_type": None}, "config.json: no model_type", None),
    "an activation of nobody": (
        {"hidden_act": "snake"},
        "config.json: hidden_act is 'snake', which transformers does not know", None,
    ),
    "a rotation of nobody": (
        {"rope_parameters": {"rope_type": "magic"}},
        "config.json: rope_parameters.rope_type is 'magic', which transformers does not know", None,
    ),
    "a kind of attention": (
        {"_attn_implementation": "flash_attention_2"}, None,
        "config.json asks for a kind of attention that is not installed here: ",
    ),
    "an empty quantizer": (
        {"quantization_config": {}}, None,
        "config.json has an empty quantization_config, so how its weights are stored is not known",
    ),
    "a family that is not known here": (
        {"model_type": "llama9"}, None, "transformers ",
    ),
    "a tokenizer that is larger": (
        {}, None,
        "its tokenizer has 2048 ids, the model has embeddings for 64: train needs --tokenizer DIR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_PROMISED)
def test_what_train_refuses_is_not_advised(tmp_path: Path, kind: str) -> None:
    config, problem, note = NOT_PROMISED[kind]
    folder = with_tokenizer(write_base(tmp_path / "m", toy_base(), lambda tensors: tensors))
    values = jsonio.read_object(folder / "config.json", ConfigError)
    (folder / "config.json").write_bytes(jsonio.dump_canonical({**values, **config}))
    found = inspect_path(folder)
    assert found.problems == ([] if problem is None else [problem])
    assert found.complete == (problem is None)
    assert "sftctl train" not in (found.advice or "")
    assert note is None or found.notes[0].startswith(note)
