"""gguf_file: the sizes that transformers does not take from a .gguf file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.fake import fake_model
from sftctl.model.load import load_pretrained
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.toys.models import toy_base, write_gguf_model

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"head_dim": 12}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 12}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"moe_intermediate_size": 40, "head_dim": 4}),
]


@pytest.mark.parametrize(("family", "sizes"), MODELS, ids=str)
def test_a_model_from_a_gguf_file_computes_what_it_computed(
    tmp_path: Path, family: str, sizes: dict[str, Any]
) -> None:
    model, said = toy_base(family, **sizes).eval(), list[str]()
    name = str(write_gguf_model(tmp_path / "base.gguf", model))
    loaded = load_pretrained(name, said.append).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert said == []
    fake = fake_model(name, load_tokenizer(str(SAMPLE_TOKENIZER)), torch.device("cpu"))
    assert fake.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_rope_scaling_that_is_not_read_is_a_warning(tmp_path: Path) -> None:
    file, said = tmp_path / "base.gguf", list[str]()
    scaling: dict[str, Any] = {"qwen3.rope.scaling.type": "yarn"}
    write_gguf_model(file, toy_base("qwen3"), **scaling)
    load_pretrained(str(file), said.append)
    [line] = said
    assert line.startswith(f"model {file}: its RoPE scaling is not read: type yarn; ")
