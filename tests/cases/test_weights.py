"""Base models whose weights do not fit: refused, mapped, or loaded with a warning."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftctl import jsonio
from sftctl.errors import ConfigError
from sftctl.model.load import load_pretrained
from tests.toys.commands import Result
from tests.toys.models import FAMILIES, Tensors, toy_base, write_base, write_gguf_model

Change = Callable[[Tensors], Tensors]


def added(prefix: str) -> Change:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def replaced(*pairs: tuple[str, str]) -> Change:
    def change(tensors: Tensors) -> Tensors:
        result = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                name = name.replace(old, new)
            result[name] = tensor
        return result

    return change


def without(*parts: str) -> Change:
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }


def cut(part: str) -> Change:
    return lambda tensors: {
        name: tensor[..., :-2] if part in name else tensor for name, tensor in tensors.items()
    }


def as_it_is(tensors: Tensors) -> Tensors:
    return tensors


WRAPPED: dict[str, tuple[Change, str]] = {
    "compiled": (added("_orig_mod."), "`_orig_mod.`"),
    "ddp": (added("module."), "`module.`"),
    "compiled ddp": (added("module._orig_mod."), "`_orig_mod.` and `module.`"),
    "peft": (added("base_model.model."), "`base_model.model.`"),
    "fsdp": (added("_fsdp_wrapped_module."), "`_fsdp_wrapped_module.`"),
    "fsdp blocks": (
        replaced(("layers.0.", "layers.0._fsdp_wrapped_module."), ("mlp.", "mlp._orig_mod.")),
        "`_orig_mod.` and `_fsdp_wrapped_module.`",
    ),
    "vision-language": (added("language_model."), "`language_model.`"),
    "newer vision-language": (
        replaced(("model.", "model.language_model.")),
        "`language_model.`",
    ),
    "checkpointed": (
        replaced(("layers.1.", "layers.1._checkpoint_wrapped_module.")),
        "`_checkpoint_wrapped_module.`",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", WRAPPED)
def test_names_with_a_well_known_prefix_are_mapped_and_reported(
    tmp_path: Path, kind: str, family: str
) -> None:
    model, said = toy_base(family), list[str]()
    change, prefixes = WRAPPED[kind]
    folder = write_base(tmp_path / "base", model, change)
    loaded = load_pretrained(str(folder), said.append)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    [line] = said
    assert line.startswith(f"model {folder}: ") and f"without the prefix {prefixes} " in line


def test_a_mapped_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    model = toy_base("qwen3_moe")
    model.save_pretrained(tmp_path / "plain")
    folder = write_base(tmp_path / "base", model, added("_orig_mod."))
    load_pretrained(str(folder), list[str]().append).save_pretrained(tmp_path / "again")
    plain, again = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "again"))
    assert plain.keys() == again.keys()


REFUSED: dict[str, tuple[Change, dict[str, object], str, str]] = {
    "a layer more in config.json": (
        as_it_is,
        {"num_hidden_layers": 3},
        "9 tensors of the model are not in the files: model.layers.2.input_layernorm.weight, "
        "model.layers.2.mlp.down_proj.weight, model.layers.2.mlp.gate_proj.weight and 6 more",
        'set "num_hidden_layers": 2 in config.json if the model has no more layers; else copy or '
        "download the weights again",
    ),
    "no head": (
        without("lm_head"),
        {},
        "1 tensor of the model is not in the files: lm_head.weight",
        'set "tie_word_embeddings": true in config.json if the head is the embedding; '
        "else copy or download the weights again",
    ),
    "half of a layer": (
        without("layers.1.mlp"),
        {},
        "3 tensors of the model are not in the files: model.layers.1.mlp.down_proj.weight",
        "copy or download",
    ),
    "no embedding": (
        without("embed_tokens"),
        {},
        "1 tensor of the model is not in the files: model.embed_tokens.weight",
        "copy or download",
    ),
    "another prefix": (
        added("policy."),
        {},
        "21 tensors of the model are not in the files: lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight and 18 more; the files have 21 other tensors: "
        "policy.lm_head.weight",
        "each name in the files begins with 'policy.': save the weights without it",
    ),
    "a prefix and a lost tensor": (
        lambda tensors: added("module.")(without("layers.0.mlp.up")(tensors)),
        {},
        "1 tensor of the model is not in the files: model.layers.0.mlp.up_proj.weight",
        "copy or download",
    ),
    "another width": (
        as_it_is,
        {"intermediate_size": 48},
        "6 tensors of another shape than config.json says: "
        "model.layers.0.mlp.down_proj.weight is 16x32, not 16x48",
        'set "intermediate_size": 32 in config.json, as the tensors have it',
    ),
    "another vocabulary": (
        as_it_is,
        {"vocab_size": 70},
        "2 tensors of another shape than config.json says: lm_head.weight is 64x16, not 70x16",
        'set "vocab_size": 64 in config.json, as the tensors have it',
    ),
    "other key and value heads": (
        as_it_is,
        {"num_key_value_heads": 2},
        "4 tensors of another shape than config.json says: "
        "model.layers.0.self_attn.k_proj.weight is 8x16, not 16x16",
        'correct "num_key_value_heads" in config.json: times "head_dim" it must be 8',
    ),
    "the sizes of another model": (
        as_it_is,
        {"hidden_size": 32, "head_dim": 16},
        "21 tensors of another shape than config.json says: ",
        "correct the sizes in config.json, or put back the config.json of these weights",
    ),
    "an adapter that is not merged": (
        lambda tensors: added("base_model.model.")(
            replaced(("q_proj.", "q_proj.base_layer."))(tensors)
            | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 16)}
        ),
        {},
        "holds an adapter that is not merged: model.layers.0.self_attn.q_proj.base_layer.weight",
        "merge it first: ",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_would_stay_random_are_refused(tmp_path: Path, kind: str) -> None:
    change, config, message, hint = REFUSED[kind]
    folder = write_base(tmp_path / "base", toy_base(), change, **config)
    with pytest.raises(ConfigError) as caught:
        load_pretrained(str(folder))
    assert caught.value.message.startswith(f"model {folder}: {message}")
    assert caught.value.hint is not None and caught.value.hint.startswith(hint)


def test_a_lost_expert_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", toy_base("qwen3_moe"), without("experts.2.up_proj"))
    with pytest.raises(ConfigError) as caught:
        load_pretrained(str(folder))
    assert caught.value.message.startswith(
        f"model {folder}: its tensors can't be put together as config.json says: "
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_may_be_absent(tmp_path: Path, family: str) -> None:
    model, said = toy_base(family, tie_word_embeddings=True), list[str]()
    folder = write_base(tmp_path / "base", model, without("lm_head"))
    loaded = load_pretrained(str(folder), said.append)
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert said == []


UNUSED: dict[str, tuple[Change, dict[str, object], str]] = {
    "a layer less in config.json": (
        as_it_is,
        {"num_hidden_layers": 1},
        "9 tensors in the files not used: model.layers.1.input_layernorm.weight",
    ),
    "a value head": (
        lambda tensors: {**tensors, "v_head.summary.weight": torch.ones(1, 16)},
        {},
        "1 tensor in the files not used: v_head.summary.weight",
    ),
}


@pytest.mark.parametrize("kind", UNUSED)
def test_tensors_that_are_not_used_are_a_warning(tmp_path: Path, kind: str) -> None:
    change, config, message = UNUSED[kind]
    folder, said = tmp_path / "base", list[str]()
    write_base(folder, toy_base(), change, **config)
    load_pretrained(str(folder), said.append)
    [line] = said
    assert line.startswith(f"model {folder}: {message}")


def test_old_buffers_cause_no_warning(tmp_path: Path) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    folder = write_base(tmp_path / "base", toy_base(), lambda tensors: tensors | old)
    said = list[str]()
    load_pretrained(str(folder), said.append)
    assert said == []


GGUF: dict[str, tuple[Change, str | None, str | None]] = {
    "whole": (as_it_is, None, None),
    "a tensor less": (
        without("layers.1.mlp.up"),
        "1 tensor of the model is not in the files: model.layers.1.mlp.up_proj.weight",
        None,
    ),
    "narrower": (cut("mlp.down"), "2 tensors of another shape than config.json says", None),
    "a layer more": (
        lambda tensors: {**tensors, "blk.2.ffn_up.weight": torch.ones(32, 16)},
        None,
        "1 tensor in the files not used: blk.2.ffn_up.weight",
    ),
    "factors of RoPE": (
        lambda tensors: {**tensors, "rope_freqs.weight": torch.ones(4)},
        None,
        "1 tensor in the files not used: rope_freqs.weight",
    ),
}


@pytest.mark.parametrize("kind", GGUF)
def test_the_names_of_a_gguf_file_are_judged_by_the_same_rules(tmp_path: Path, kind: str) -> None:
    change, refused, warned = GGUF[kind]
    file, said = tmp_path / "base.gguf", list[str]()
    write_gguf_model(file, toy_base(), change)
    if refused is not None:
        with pytest.raises(ConfigError) as caught:
            load_pretrained(str(file))
        assert caught.value.message.startswith(f"model {file}: {refused}")
        return
    load_pretrained(str(file), said.append)
    assert said == ([f"model {file}: {warned}"] if warned else [])


NAN, INF = float("nan"), float("inf")
UP, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"


def valued(name: str, value: float, places: int | None = 1) -> Change:
    """One tensor with a value in its first place, or in all places."""

    def change(tensors: Tensors) -> Tensors:
        changed = tensors[name].clone()
        changed.view(-1)[:places] = value
        return tensors | {name: changed}

    return change


VALUES: dict[str, tuple[Change, str | None, str | None]] = {
    # what is done, what refuses it, what is only said
    "a NaN": (valued(UP, NAN), f"1 tensor has NaN or infinite numbers ({UP})", None),
    "an infinite number in a norm": (
        valued("model.norm.weight", -INF),
        "1 tensor has NaN or infinite numbers (model.norm.weight)", None,
    ),
    "two tensors": (
        lambda tensors: valued(UP, NAN)(valued(EMBEDDING, INF)(tensors)),
        f"2 tensors have NaN or infinite numbers ({EMBEDDING}, {UP})", None,
    ),
    "an embedding of zeros": (
        valued(EMBEDDING, 0, None), f"its embedding has only zeros ({EMBEDDING})", None,
    ),
    "the end of a file is zeros": (
        lambda tensors: valued(UP, 0, None)(valued("lm_head.weight", 0, None)(tensors)), None,
        "2 matrices have only zeros, as in a file that was not copied to its end: "
        f"lm_head.weight, {UP}",
    ),
    "a norm of zeros": (valued("model.norm.weight", 0, None), None, None),
    "the largest numbers": (valued(UP, 3e38, None), None, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_numbers_that_no_model_has_are_said_alike_by_train_and_inspect_ckpt(
    tmp_path: Path, sftctl: Callable[..., Result], kind: str
) -> None:
    change, refused, said = VALUES[kind]
    folder, lines = write_base(tmp_path / "base", toy_base(), change), list[str]()
    if refused is None:
        load_pretrained(str(folder), lines.append)
    else:
        with pytest.raises(ConfigError) as caught:
            load_pretrained(str(folder), lines.append)
        assert caught.value.message == f"model {folder}: {refused}" and caught.value.hint
    assert lines == ([f"model {folder}: {said}"] if said else [])
    assert sftctl("inspect-ckpt", folder).exit_code == 0  # it reads no numbers
    result = sftctl("inspect-ckpt", folder, "--tensors", "--json")
    found = jsonio.loads(result.stdout)
    assert found["problems"] == ([refused] if refused else [])
    assert (found["complete"], result.exit_code) == ((False, 4) if refused else (True, 0))
    assert said is None or said in found["notes"]
    if refused:
        assert result.error == f"error: {folder}: {refused}"
        assert f"hint: {caught.value.hint}\n" in result.stderr
