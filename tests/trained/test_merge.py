"""Adapters of peft are opened, merged with proof, and refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import CheckpointError, ConfigError, IncompatibleCheckpoint
from sftctl.inspection.diff import diff
from sftctl.inspection.inspect import inspect_path
from sftctl.model.load import load_pretrained
from sftctl.model.sampling import Sampling
from sftctl.model.source import require_model_folder
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.run import run_training
from sftctl.trained.chat import ChatSession
from sftctl.trained.checks import check_export, kind_of
from sftctl.trained.export import export_adapter, export_merged, export_model
from sftctl.trained.merge_proof import compare
from sftctl.trained.open import open_trained
from tests.toys.models import toy_base as random_base
from tests.toys.runs import lora_config, toy_base

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 40).unsqueeze(0)

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tied": ("qwen3", {"tie_word_embeddings": True}, {}),
    "untied": ("llama", {"tie_word_embeddings": False}, {}),
    "dora": ("qwen3", {}, {"use_dora": True}),
    "rslora": ("qwen3", {}, {"use_rslora": True}),
    "embeddings saved whole, tied": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"modules_to_save": ["embed_tokens"]},
    ),
    "head saved whole, tied": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"modules_to_save": ["lm_head"]},
    ),
    "both, kept tied": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "lora on a tied head": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"target_modules": [*LINEAR, "lm_head"]},
    ),
    "tokens, tied": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"trainable_token_indices": [5, 6, 7]},
    ),
    "tokens, untied": (
        "llama",
        {"tie_word_embeddings": False},
        {"trainable_token_indices": {"embed_tokens": [5, 6, 7]}},
    ),
    "experts": (
        "qwen3_moe",
        {"tie_word_embeddings": False},
        {
            "target_modules": LINEAR[:4],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


def write_adapter(folder: Path, family: str, sizes: dict[str, Any], lora: dict[str, Any]) -> Path:
    """An adapter of random weights by peft, and its base with the bundled tokenizer."""
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    base = random_base(family, vocab_size=tokenizer.vocab_size, **sizes)
    base.save_pretrained(folder / "base")
    tokenizer.save(folder / "base")
    model = load_pretrained(str(folder / "base"))
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
    settings |= {"task_type": "CAUSAL_LM"} | lora
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    wrapped.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def logits_by_peft(folder: Path) -> torch.Tensor:
    """Logits of plain peft and transformers, without any code of ours."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_has_the_logits_of_base_and_adapter(tmp_path: Path, case: str) -> None:
    adapter = write_adapter(tmp_path, *CASES[case])
    expected = logits_by_peft(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(open_trained(adapter).model.eval()(IDS).logits, expected)
    proof = export_merged(adapter, tmp_path / "merged", "float32")
    assert proof.largest_difference < 1e-3 and proof.equal_greedy > 0.99 and proof.tokens > 100
    merged = load_pretrained(str(tmp_path / "merged")).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-3, rtol=0)
        plain = load_pretrained(str(tmp_path / "base")).eval()(IDS).logits
    assert float((plain - expected).abs().max()) > 0.1  # the adapter does something
    is_tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    if "tied" in case:
        assert is_tied is (case in ("tied", "both, kept tied", "tokens, tied"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path, *CASES["untied"])


def test_in_bfloat16_the_greedy_tokens_decide(adapter: Path, tmp_path: Path) -> None:
    """Logits of random weights have near-ties, which rounding turns; this base has none."""
    file = tmp_path / "base/model.safetensors"
    tensors = load_file(file)
    rows = tensors["model.embed_tokens.weight"] * 100  # far above what the layers add to them
    tensors["model.embed_tokens.weight"] = rows
    tensors["model.norm.weight"] = torch.ones_like(tensors["model.norm.weight"])
    # each token's most probable next one is the token itself: no two rows have one direction
    tensors["lm_head.weight"] = torch.nn.functional.normalize(rows, dim=1)
    save_file(tensors, file, metadata={"format": "pt"})
    proof = export_merged(adapter, tmp_path / "merged", "bf16")
    assert proof.dtype == "bfloat16" and proof.equal_greedy == 1
    assert 1e-3 < proof.largest_difference < 0.1  # the margins are above 0.4
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_one_greedy_token_of_a_hundred_may_differ_in_bfloat16_and_no_more() -> None:
    before = torch.eye(100)
    for count in (0, 1, 2):
        after = before.clone()
        after[:count] = after[:count].roll(1, dims=1)
        proof = compare("bfloat16", [before], [after])
        assert proof.equal_greedy == 1 - count / 100 and proof.tokens == 100
        if count < 2:
            proof.require()
    with pytest.raises(CheckpointError, match="98.00%.*at least 99% must be equal") as e:
        proof.require()
    assert e.value.exit_code == 4


def changed(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The adapter with other tensors."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return adapter


def test_a_difference_beyond_the_bound_writes_nothing(adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "base/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= 1e4  # logits of 1e5, whose last bits are above the bound
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="at most 0.001 is allowed in float32; nothing") as e:
        export_merged(adapter, tmp_path / "merged", "float32")
    assert e.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_is_chatted_with_and_copied(adapter: Path, tmp_path: Path) -> None:
    session = ChatSession.open(adapter, Sampling(4, 0.0, 1.0, 0))
    assert isinstance(session.answer("Hello"), str)
    export_adapter(adapter, tmp_path / "copy")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (adapter / name).read_bytes()


def edit(adapter: Path, **values: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def rename(tensors: dict[str, torch.Tensor]) -> None:
    first = sorted(tensors)[0]
    tensors[first.replace("layers.0", "layers.7")] = tensors.pop(first)


def widen(tensors: dict[str, torch.Tensor]) -> None:
    first = sorted(tensors)[0]
    tensors[first] = torch.cat([tensors[first]] * 2, dim=1)


def fill(value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    """One tensor with other values, of the same shape."""

    def filled(tensors: dict[str, torch.Tensor]) -> None:
        first = sorted(tensors)[0]
        tensors[first] = value.expand(tensors[first].shape).contiguous()

    return filled


def renamed(old: str, new: str, most: int = 1000) -> Callable[[dict[str, torch.Tensor]], None]:
    """Other names for the first `most` tensors."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors)[:most]:
            tensors[name.replace(old, new, 1)] = tensors.pop(name)

    return rename


def swap(tensors: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors):
        if ".lora_A" in name:
            other = name.replace(".lora_A", ".lora_B")
            tensors[name], tensors[other] = tensors[other], tensors[name]


PREFIX = "base_model.model."
NAN, WHOLE = torch.tensor(float("nan")), torch.tensor(1, dtype=torch.int8)

DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (
        lambda a: edit(a, peft_type="IA3"),
        "peft_type is IA3, but sftctl reads only LORA",
    ),
    "no base": (lambda a: edit(a, base_model_name_or_path=None), "names no base"),
    "base gone": (lambda a: edit(a, base_model_name_or_path="/gone/x"), "its base /gone/x is not"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), r"safetensors: missing"),
    "damaged": (lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 9), "damaged"),
    "a tensor is missing": (lambda a: changed(a, drop), "does not fit .*its file has no"),
    "a tensor too many": (lambda a: changed(a, rename), "does not fit"),
    "another shape": (lambda a: changed(a, widen), "does not fit .*size mismatch"),
    "not a number": (lambda a: changed(a, fill(NAN)), "has values that are not finite numbers"),
    "whole numbers": (lambda a: changed(a, fill(WHOLE)), "is of type int8, which an adapter can't"),
    "no tensors": (lambda a: changed(a, dict.clear), "does not fit .*its file has no"),
    "other targets": (lambda a: edit(a, target_modules=["xyz"]), "does not fit"),
    "no prefix": (lambda a: changed(a, renamed(PREFIX, "")), "where it begins with base_model.mod"),
    "no prefix once": (
        lambda a: changed(a, renamed(PREFIX, "", 1)),
        "not named as in a file of pe",
    ),
    "half a prefix": (lambda a: changed(a, renamed(PREFIX, "model.")), "not named as in a file of"),
    "wrapped": (lambda a: changed(a, renamed("", "module.")), "not named as in a file of peft"),
    "compiled": (lambda a: changed(a, renamed("", "_orig_mod.")), "not named as in a file of peft"),
    "its name in a model": (
        lambda a: changed(a, renamed(".weight", ".default.weight")),
        "has the name that it has in a model",
    ),
    "A and B swapped": (lambda a: changed(a, swap), "does not fit .*has rank"),
    "a head that is not in it": (
        lambda a: edit(a, modules_to_save=["lm_head"]),
        "it has no lm_head, which modules_to_save names",
    ),
    "rows that are not in it": (
        lambda a: edit(a, trainable_token_indices=[1, 2]),
        "it has no rows of tokens, which trainable_token_indices names",
    ),
    "another adapter as its base": (
        lambda a: edit(a, base_model_name_or_path=str(a)),
        "its base .* is itself an adapter",
    ),
    "not JSON": (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_an_adapter_that_does_not_fit_is_refused(adapter: Path, defect: str) -> None:
    damage, message = DEFECTS[defect]
    damage(adapter)
    with pytest.raises(ConfigError, match=message) as raised:
        open_trained(adapter)
    assert "\n" not in raised.value.message


def test_an_adapter_that_peft_can_not_merge_is_refused_in_one_line(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, "llama", {}, {"lora_bias": True})
    with pytest.raises(CheckpointError, match="this adapter can't be merged: Impossible") as raised:
        export_merged(adapter, tmp_path / "merged", "float32")
    assert "\n" not in raised.value.message and not (tmp_path / "merged").exists()


def test_merge_is_for_adapters_and_adapters_are_merged(adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match="is an adapter, not a complete model"):
        export_model(adapter, output, "float32")
    with pytest.raises(ConfigError, match="base is not an adapter"):
        check_export(tmp_path / "base", output, "float32", merge=True)
    with pytest.raises(ConfigError, match="--format adapter: .*base is not an adapter"):
        check_export(tmp_path / "base", output, "float32", "adapter")
    with pytest.raises(ConfigError, match="not --format gguf"):
        check_export(adapter, output, "float32", "gguf", merge=True)


def test_an_adapter_next_to_a_model_is_an_adapter_for_every_command(
    adapter: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(adapter.parent / "base" / name, adapter / name)
    assert kind_of(adapter) == "adapter" and open_trained(adapter).adapter is not None
    with pytest.raises(ConfigError, match="is an adapter, not a complete model"):
        check_export(adapter, tmp_path / "out", "float32")
    check_export(adapter, tmp_path / "out", "float32", merge=True)
    with pytest.raises(ConfigError, match=f"{adapter}: an adapter of .*, not a model"):
        require_model_folder(str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    assert kind_of(adapter) == "model"
    require_model_folder(str(adapter))


def test_an_adapter_run_is_opened_merged_and_copied(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "train__max_steps": 3,
        "optim__learning_rate": 0.05,
        "train__dtype": "float32",
    }
    run_training(lora_config(tmp_path, **settings))
    run, checkpoint = tmp_path / "run", tmp_path / "run/checkpoints/step-00000003"
    proof = export_merged(run, tmp_path / "merged", "float32")
    assert proof.rows == 16 and proof.largest_difference < 1e-3
    ours = {str(path): open_trained(path).model.eval() for path in (run, checkpoint, run / "final")}
    with torch.no_grad():
        expected, *others = (model(IDS).logits for model in ours.values())
        assert all(torch.equal(expected, other) for other in others)
        merged = load_pretrained(str(tmp_path / "merged")).eval()(IDS).logits
        plain = load_pretrained(str(toy_base(tmp_path))).eval()(IDS).logits
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=0)
    assert float((plain - expected).abs().max()) > 1e-2
    export_adapter(checkpoint, tmp_path / "copy")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (run / "final" / name).read_bytes()
    for folder in (run / "final", tmp_path / "copy"):  # the copy knows its step by its card alone
        found = inspect_path(folder).to_json()
        assert found["format"] == "PEFT adapter directory (LORA)" and not found["problems"]
        assert (found["step"], found["step_counts"]) == (3, "optimizer updates")
        assert (folder / "README.md").read_text().startswith("---\nlibrary_name: peft\n")
    here, there = inspect_path(checkpoint), inspect_path(run / "final")
    for compared in (diff(here, there), diff(there, here)):
        assert len(compared.tensors) == 2 * 7 * 2 and all(one.is_equal for one in compared.tensors)
        left = compared.only_in_a + compared.only_in_b
        assert all(name.startswith("optimizer.") for name in left)
    with pytest.raises(ConfigError, match="is an adapter, not a complete model"):
        export_model(run, tmp_path / "plain", "float32")
    named = toy_base(tmp_path)
    moved = named.rename(tmp_path / "moved")
    for path in (run, checkpoint, run / "final"):
        with pytest.raises(IncompatibleCheckpoint, match="its base can't be read") as gone:
            open_trained(path)
        assert f"set model.name in {run / 'config.toml'} to where it is" in str(gone.value.hint)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(str(named), str(moved)))
    for path in (run, checkpoint, run / "final"):
        assert torch.equal(open_trained(path).model.eval()(IDS).logits, expected)
    moved.rename(named)
    (run / "config.toml").write_text(text)
    base = toy_base(tmp_path) / "model.safetensors"
    tensors = load_file(base)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, base, metadata={"format": "pt"})
    shutil.copytree(run / "final", tmp_path / "alone")
    for path in (run, checkpoint, run / "final", tmp_path / "alone"):
        with pytest.raises(IncompatibleCheckpoint, match="is not the base that it was") as raised:
            open_trained(path)
        assert raised.value.message.startswith(str(tmp_path))


def test_new_tokens_of_an_adapter_run_are_merged(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "train__max_steps": 1,
        "model__new_tokens": ["<tool>"],
        "train__dtype": "float32",
    }
    run_training(lora_config(tmp_path, **settings))
    for name in ("final", "checkpoints/step-00000001"):
        proof = export_merged(tmp_path / "run" / name, tmp_path / name[:5], "float32")
        assert proof.largest_difference < 1e-3
        merged = load_pretrained(str(tmp_path / name[:5]))
        base = load_pretrained(str(toy_base(tmp_path)))
        rows = base.get_input_embeddings().num_embeddings
        assert merged.get_input_embeddings().num_embeddings == rows + 1
    checkpoint, final = tmp_path / "run/checkpoints/step-00000001", tmp_path / "run/final"
    compared = diff(inspect_path(checkpoint), inspect_path(final))
    assert "model.model.embed_tokens.weight" in {one.name for one in compared.tensors}
    assert all(one.is_equal for one in compared.tensors) and not compared.only_in_b


def test_adapters_are_inspected_and_compared(adapter: Path, tmp_path: Path) -> None:
    found = inspect_path(adapter)
    assert found.format == "PEFT adapter directory (LORA)" and not found.problems
    targets = ", ".join(sorted(LINEAR))
    assert f"an adapter of rank 4 on {targets}, for {tmp_path / 'base'}" in found.notes[0]
    other = shutil.copytree(adapter, tmp_path / "other")
    edit(other, lora_alpha=16)
    first = "layers.0.mlp.up_proj.lora_B.weight"

    def double(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.model.{first}"] *= 2

    cut = Path(shutil.copytree(adapter, tmp_path / "cut")) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    [problem] = inspect_path(cut.parent).problems
    assert problem.startswith("adapter_model.safetensors: ") and "missing" not in problem
    compared = diff(found, inspect_path(changed(other, double)))
    assert [(one.key, one.a, one.b) for one in compared.config] == [("adapter.lora_alpha", 8, 16)]
    [moved] = [one for one in compared.tensors if not one.is_equal]
    assert moved.name.endswith(first)
