"""minimind: .pth files with the names and shapes that MiniMind's trainer writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sftctl.errors import ConfigError
from sftctl.model.fake import fake_model
from sftctl.model.load import load_pretrained
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, FFN, LAYERS, EXPERTS = 29, 16, 2, 1, 8, 12, 2, 3


def weights(experts: int = 0) -> dict[str, torch.Tensor]:
    """`state_dict` of MiniMindForCausalLM, in half precision as MiniMind saves it."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,),
    }  # fmt: skip
    for i in range(LAYERS):
        attention = {
            "q_proj": (HEADS * HEAD, WIDTH), "k_proj": (KV_HEADS * HEAD, WIDTH),
            "v_proj": (KV_HEADS * HEAD, WIDTH), "o_proj": (WIDTH, HEADS * HEAD),
            "q_norm": (HEAD,), "k_norm": (HEAD,),
        }  # fmt: skip
        layer = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
        layer |= {"input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,)}
        for place in [f"mlp.experts.{e}" for e in range(experts)] or ["mlp"]:
            layer |= {f"{place}.{n}_proj.weight": (FFN, WIDTH) for n in ("gate", "up")}
            layer[f"{place}.down_proj.weight"] = (WIDTH, FFN)
        if experts:
            layer["mlp.gate.weight"] = (experts, WIDTH)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    result = {name: (torch.randn(shape) * 0.3).half() for name, shape in shapes.items()}
    return result | {"lm_head.weight": result["model.embed_tokens.weight"]}


def written(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def minimind_logits(w: dict[str, torch.Tensor], ids: torch.Tensor, experts: int) -> torch.Tensor:
    """MiniMind's forward pass as its own code computes it, for one row of ids.  (T, V)"""
    w = {name: value.float() for name, value in w.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def ffn(x: torch.Tensor, place: str) -> torch.Tensor:
        gate, up = (x @ w[f"{place}.{n}_proj.weight"].T for n in ("gate", "up"))
        return (F.silu(gate) * up) @ w[f"{place}.down_proj.weight"].T

    count = len(ids)
    angles = torch.outer(torch.arange(count), 1e6 ** -(torch.arange(0, HEAD, 2) / HEAD))
    cos, sin = (torch.cat([f(angles), f(angles)], -1)[:, None] for f in (torch.cos, torch.sin))

    def rotated(x: torch.Tensor) -> torch.Tensor:  # (T, heads, HEAD)
        half = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)
        return x * cos + half * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        h = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{at}.self_attn.{n}_proj.weight"].T).view(count, -1, HEAD) for n in "qkv"
        )
        q = rotated(norm(q, f"{at}.self_attn.q_norm.weight"))
        k = rotated(norm(k, f"{at}.self_attn.k_norm.weight"))
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD**0.5
        scores += torch.full((count, count), float("-inf")).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        x = x + mixed @ w[f"{at}.self_attn.o_proj.weight"].T
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        if experts:  # one expert a token; its weight is normed to one
            best = (h @ w[f"{at}.mlp.gate.weight"].T).argmax(-1)
            x = x + torch.stack([ffn(h[t], f"{at}.mlp.experts.{best[t]}") for t in range(count)])
        else:
            x = x + ffn(h, f"{at}.mlp")
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("experts", [0, EXPERTS])
@pytest.mark.parametrize("resume_file", [False, True])
def test_the_model_of_a_pth_file_computes_what_minimind_computes(
    tmp_path: Path, experts: int, resume_file: bool
) -> None:
    stored = weights(experts)
    content = {"model": stored, "epoch": 1, "step": 30} if resume_file else stored
    model = load_pretrained(written(tmp_path / "full_sft_16.pth", content)).eval()
    ids = torch.arange(3, 20)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(logits, minimind_logits(stored, ids, experts), rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("experts", [0, EXPERTS])
def test_its_size_is_known_before_a_run(
    tmp_path: Path, bundled: ChatTokenizer, experts: int
) -> None:
    name = written(tmp_path / "full_sft_16.pth", weights(experts))
    fake = fake_model(name, bundled, torch.device("cpu"))
    real = load_pretrained(name)
    assert fake.num_parameters == sum(p.numel() for p in real.parameters())


def refusal(name: str) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as caught:
        load_pretrained(name)
    return caught.value.message, caught.value.hint


def test_weights_of_an_older_series_are_refused(tmp_path: Path) -> None:
    stored = {name: value for name, value in weights().items() if "_norm.weight" not in name}
    path = written(tmp_path / "old.pth", stored)
    assert refusal(path) == (
        f"{path}: not weights of minimind-3: model.layers.0.self_attn.q_norm.weight is missing",
        "convert older series with MiniMind's scripts/convert_model.py first",
    )


def test_missing_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    stored = weights()
    del stored["model.norm.weight"]
    path = written(tmp_path / "less.pth", stored | {"model.extra": torch.ones(1)})
    assert refusal(path)[0] == (
        f"{path}: 1 tensor of the model is not in the files: model.norm.weight; "
        "the files have 1 other tensor: model.extra"
    )
    path = written(tmp_path / "odd.pth", weights() | {"model.norm.weight": torch.ones(3)})
    assert refusal(path)[0] == (
        f"{path}: 1 tensor of another shape than config.json says: model.norm.weight is 3, not 16"
    )


def test_weights_that_are_not_used_are_a_warning(tmp_path: Path) -> None:
    path, said = tmp_path / "more.pth", list[str]()
    load_pretrained(written(path, weights() | {"model.extra": torch.ones(1)}), said.append)
    assert said == [f"{path}: 1 tensor in the files not used: model.extra"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("experts", [0, EXPERTS])
def test_prefixes_of_wrappers_are_removed_and_reported(
    tmp_path: Path, prefix: str, experts: int
) -> None:
    path, said = tmp_path / "wrapped.pth", list[str]()
    stored = weights(experts)
    wrapped = written(path, {f"{prefix}{name}": tensor for name, tensor in stored.items()})
    loaded = load_pretrained(wrapped, said.append).state_dict()
    plain = load_pretrained(written(tmp_path / "plain.pth", stored)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())
    [line] = said
    assert line.startswith(f"{path}: {len(stored)} tensors loaded without the prefix `")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "evil.pth", {"model.norm.weight": print})
    assert refusal(path)[0].startswith(f"{path}: can't be read as weights: ")
    path = written(tmp_path / "list.pth", [1, 2])
    assert refusal(path)[0] == f"{path}: contains a list, not weights by name"
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    assert "can't be read as weights" in refusal(str(tmp_path / "cut.pth"))[0]


def test_a_pth_file_has_no_tokenizer(tmp_path: Path) -> None:
    path = written(tmp_path / "full_sft_16.pth", weights())
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(path)
    assert caught.value.message == f"{path}: holds weights only, no tokenizer"
    assert caught.value.hint == (
        "give --tokenizer DIR (MiniMind's model/ folder), or a prepared store"
    )
    with pytest.raises(ConfigError, match="gone.pth: no such file"):
        load_pretrained(str(tmp_path / "gone.pth"))


def test_in_bfloat16_only_the_weights_are_rounded(tmp_path: Path) -> None:
    name = written(tmp_path / "full_sft_16.pth", weights())
    narrow, wide = load_pretrained(name, dtype=torch.bfloat16), load_pretrained(name)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert narrow.get_output_embeddings().weight is narrow.get_input_embeddings().weight
    for key, parameter in narrow.named_parameters():
        assert torch.equal(parameter, wide.get_parameter(key).bfloat16())
    buffers = dict(wide.named_buffers())
    assert any("inv_freq" in key for key in buffers)  # of RoPE: rounded, it would turn otherwise
    for key, buffer in narrow.named_buffers():
        assert torch.equal(buffer, buffers[key])
