"""Runs that continue from an adapter of peft or of a run, and adapters that do not fit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.checkpoint.sealed import seal
from sftctl.config.adapter import AdapterConfig
from sftctl.config.existing_adapter import layer_of
from sftctl.config.load import Layer, load_layers
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, CorruptCheckpoint, IncompatibleCheckpoint
from sftctl.model.adapter.attach import AdapterFile, attach
from sftctl.model.load import load_pretrained
from sftctl.runs.base import (
    identify,
    require_base_of_start,
    require_same_start,
    start_doubts,
)
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.preflight.paths import check_before_loading
from sftctl.train.replay import replay
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from tests.toys.runs import events_named, lora_config, stored_tensors, toy_base, toy_config

LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "lora_dropout": 0.05}
FIRST = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and next to it an adapter that peft wrote."""
    folder = tmp_path_factory.mktemp("start")
    write(folder, use_rslora=True, modules_to_save=["lm_head", "embed_tokens"])
    return folder


def write(folder: Path, **settings: Any) -> Path:
    """An adapter of random weights by plain peft."""
    torch.manual_seed(1)
    model = load_pretrained(str(toy_base(folder)))
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", **LORA, **settings})
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    wrapped.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def configured(folder: Path, adapter: Path, name: str = "run", **values: object) -> RunConfig:
    """The configuration of `sftctl train --adapter`: typed settings override the adapter's."""
    typed = {key.replace("__", "."): value for key, value in values.items()}
    layers = [Layer("--set", {"train.max_steps": 2, "adapter.start": str(adapter), **typed})]
    found = load_layers([*layer_of(layers), *layers])[0]
    toy = toy_config(folder, name)
    train = replace(toy.train, max_steps=found.train.max_steps, dtype="float32")
    return replace(toy, model=found.model, adapter=found.adapter, train=train)


def test_a_run_goes_on_from_an_adapter_of_peft(made: Path) -> None:
    config = configured(made, made / "adapter", adapter__dropout=0.0)
    settings = config.adapter
    assert (settings.rank, settings.alpha, settings.use_rslora) == (2, 6, True)
    assert settings.targets == ["q_proj", "up_proj"] and settings.lora and settings.dropout == 0
    assert {*(settings.modules_to_save or ())} == {"lm_head", "embed_tokens"}
    assert config.model.name == str(toy_base(made))
    run_training(replace(config, optim=replace(config.optim, learning_rate=0.0)))
    final = made / "run/final"
    ours, theirs = (
        load_file(path / "adapter_model.safetensors") for path in (final, made / "adapter")
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    recorded = read_manifest(list_checkpoints(made / "run/checkpoints")[-1]).base
    assert recorded is not None
    assert recorded["start"]["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    [warning] = events_named(made / "run", "warning")
    assert "the learning rate is 0" in warning["message"]  # and no line about the base


def test_a_resume_needs_the_adapter_only_at_step_0(tmp_path: Path) -> None:
    run_training(lora_config(tmp_path, "first", train__max_steps=1))
    start = Path(shutil.copytree(tmp_path / "first/final", tmp_path / "adapter"))
    run_training(configured(tmp_path, start))
    before = stored_tensors(list_checkpoints(tmp_path / "run/checkpoints")[0])
    assert any("embed" not in name and "lora_B" in name for name in before)
    weights = start / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: t + 1 for name, t in tensors.items()}, weights)
    run_training(RunConfig(), ResumeRequest(tmp_path / "run", step=1))
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000001")
    with pytest.raises(
        IncompatibleCheckpoint, match="is not the adapter that the run continued: ada"
    ):
        replay(tmp_path / "run")  # from step 0
    shutil.rmtree(start)
    recorded = read_manifest(list_checkpoints(tmp_path / "run/checkpoints")[-1]).base
    with pytest.raises(
        IncompatibleCheckpoint, match="the adapter that the run continued can't be rea"
    ):
        require_same_start(tmp_path, recorded, str(start))
    run_training(RunConfig(), ResumeRequest(tmp_path / "run", max_steps=3))
    assert list_checkpoints(tmp_path / "run/checkpoints")[-1].name == "step-00000003"


def edit(adapter: Path, **values: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change(adapter: Path, **values: torch.Tensor | None) -> None:
    """Other tensors: None removes one."""
    file = adapter / "adapter_model.safetensors"
    tensors = {**load_file(file), **values}
    save_file({name: t for name, t in tensors.items() if t is not None}, file)


def named(adapter: Path, part: str) -> list[str]:
    """The names of the tensors with this part."""
    return [name for name in load_file(adapter / "adapter_model.safetensors") if part in name]


CASES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "another rank": (
        lambda a: None,
        {"adapter__rank": 8},
        "adapter.rank: 8, but ADAPTER was made with 2",
    ),
    "other targets": (
        lambda a: None,
        {"adapter__targets": "q_proj"},
        "adapter.targets: q_proj, but ADAPTER was made with q_proj, up_proj",
    ),
    "without its head": (
        lambda a: None,
        {"adapter__modules_to_save": "embed_tokens"},
        "adapter.modules_to_save: embed_tokens, but ADAPTER was made with lm_head, embed_tokens",
    ),
    "no LoRA": (
        lambda a: edit(a, peft_type="IA3"),
        {},
        "ADAPTER/adapter_config.json: peft_type is IA3, but sftctl reads only LORA adapters",
    ),
    "a newer peft": (
        lambda a: edit(a, use_qlora2=True, peft_version="0.99.0"),
        {},
        "ADAPTER/adapter_config.json: use_qlora2 = True (written by peft 0.99.0) is not known here",
    ),
    "another base": (
        lambda a: change(a, **{FIRST: torch.zeros(2, 7)}),
        {},
        "ADAPTER: does not fit BASE: model.layers.0.mlp.up_proj.lora_A.weight is 2 x 7, not 2 x 64",
    ),
    "a tensor is missing": (
        lambda a: change(a, **{FIRST.replace("lora_A", "lora_B"): None}),
        {},
        "ADAPTER: does not fit BASE: it has no model.layers.0.mlp.up_proj.lora_B.weight",
    ),
    "more layers": (
        lambda a: change(a, **{FIRST.replace("layers.0", "layers.9"): torch.zeros(2, 64)}),
        {},
        "ADAPTER: does not fit BASE: the model has no place for its "
        "model.layers.9.mlp.up_proj.lora_A.weight",
    ),
    "added tokens": (
        lambda a: change(a, **{"base_model.model.lm_head.weight": torch.zeros(9, 64)}),
        {},
        "ADAPTER: does not fit BASE: lm_head.weight is 9 x 64, not 2048 x 64",
    ),
    "untied": (
        lambda a: change(a, **{"base_model.model.lm_head.weight": torch.zeros(2048, 64)}),
        {},
        "ADAPTER: has different model.embed_tokens.weight and lm_head.weight, which are one weight "
        "in BASE",
    ),
    "damaged": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 9),
        {},
        "ADAPTER/adapter_model.safetensors: damaged",
    ),
    "an option that changes the base": (
        lambda a: edit(a, init_lora_weights="pissa", peft_version="0.21"),
        {},
        "ADAPTER/adapter_config.json: init_lora_weights = pissa (written by peft 0.21) can't be ",
    ),
    "targets that no tensor has": (
        lambda a: edit(a, target_modules=["xyz"]),
        {},
        "ADAPTER/adapter_config.json: target_modules = xyz: adapter_model.safetensors has no such ",
    ),
    "no tensors": (
        lambda a: save_file({}, a / "adapter_model.safetensors"),
        {},
        "ADAPTER/adapter_model.safetensors: has no tensor of a LoRA adapter of linear layers",
    ),
    "not a number": (
        lambda a: change(a, **{FIRST: torch.full((2, 64), float("nan"))}),
        {},
        f"ADAPTER/adapter_model.safetensors: {FIRST} has values that are not finite numbers",
    ),
    "whole numbers": (
        lambda a: change(a, **{FIRST: torch.ones(2, 64, dtype=torch.int8)}),
        {},
        f"ADAPTER/adapter_model.safetensors: {FIRST} is of type int8, which an adapter can't have",
    ),
    "excluded": (
        lambda a: edit(a, exclude_modules=["q_proj"]),
        {},
        "ADAPTER: does not fit BASE: it has model.layers.0.self_attn.q_proj, which adapter_config.",
    ),
    "the first layer alone": (
        lambda a: edit(a, layers_to_transform=0),
        {},
        "ADAPTER: does not fit BASE: it has model.layers.1.mlp.up_proj, which adapter_config.json ",
    ),
    "its head is missing": (
        lambda a: change(a, **{"base_model.model.lm_head.weight": None}),
        {},
        "ADAPTER: does not fit BASE: it has no lm_head, which modules_to_save names",
    ),
    "all tensors of a target are missing": (
        lambda a: change(a, **dict.fromkeys(named(a, "q_proj"))),
        {},
        "ADAPTER: does not fit BASE: it has no model.layers.0.self_attn.q_proj, which adapter_conf",
    ),
    "all-linear, without a layer": (
        lambda a: edit(a, target_modules="all-linear"),
        {},
        "ADAPTER: does not fit BASE: it has no model.layers.0.mlp.down_proj, which adapter_config.",
    ),
    "a pattern, without a layer": (
        lambda a: edit(a, target_modules=r".*\.(q|k|up)_proj"),
        {},
        "ADAPTER: does not fit BASE: it has no model.layers.0.self_attn.k_proj, which adapter_conf",
    ),
    "no prefix": (
        lambda a: change(a, **{FIRST: None, FIRST[17:]: torch.zeros(2, 64)}),
        {},
        "ADAPTER: does not fit BASE: model.layers.0.mlp.up_proj.lora_A.weight is not named as in a",
    ),
    "no folder": (lambda a: shutil.rmtree(a), {}, "ADAPTER/adapter_config.json: No such file"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_can_not_be_continued_is_refused_in_one_line(
    made: Path, tmp_path: Path, case: str
) -> None:
    damage, values, message = CASES[case]
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    damage(adapter)
    with pytest.raises(ConfigError) as caught:
        run_training(configured(made, adapter, f"run-{len(case)}", **values))
    expected = message.replace("ADAPTER", str(adapter)).replace("BASE", str(toy_base(made)))
    found = caught.value.message
    assert found.startswith(expected) and "\n" not in found and caught.value.hint
    assert not (made / f"run-{len(case)}").exists()


def test_the_base_of_a_runs_adapter_is_compared_by_its_hashes(made: Path, tmp_path: Path) -> None:
    """A new run on a base that changed under its name would train an adapter of another model."""
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    base = Path(shutil.copytree(toy_base(made), tmp_path / "base"))
    edit(adapter, base_model_name_or_path=str(base))
    origin: Any = SimpleNamespace(step=1, files={}, base=identify(str(base)) | {"quantize": "nf4"})
    seal(adapter, origin, "abc", 1, "last")

    def warnings(**values: object) -> list[str]:
        findings = plan_run(configured(tmp_path, adapter, "new", **values)).findings
        return [str(one) for one in findings if one.level == "warning"]

    [line] = warnings()
    assert (
        "trained on a base in nf4, and this base is not quantized; --set adapter.quantize=nf"
        in line
    )
    assert len(warnings(model__name=str(toy_base(made)))) == 1  # the same files
    change_base(base)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        warnings()
    assert caught.value.message.startswith(f"{adapter}: {base} is not the base that it was trained")
    change_base(other := Path(shutil.copytree(base, tmp_path / "other")))
    named, _ = warnings(model__name=str(other))
    assert f"names another base model, {base}" in named and "has another content (SHA-256)" in named


def test_a_base_from_the_hub_is_compared_in_the_revision_that_would_be_trained(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    edit(adapter, base_model_name_or_path="owner/base")
    old, new = (Path(shutil.copytree(toy_base(made), tmp_path / name)) for name in ("old", "new"))
    current = [old]
    monkeypatch.setattr(
        "sftctl.runs.base._snapshot",
        lambda name, revision: tmp_path / revision if revision else current[0],
    )
    monkeypatch.setattr("sftctl.model.source.hub_resolves", lambda: False)
    origin: Any = SimpleNamespace(step=1, files={}, base=identify("owner/base"))
    assert origin.base["revision"] == "old"
    seal(adapter, origin, "abc", 1, "last")
    settings = AdapterConfig(lora=True, start=str(adapter))
    require_base_of_start(settings, "owner/base")
    current[0] = new
    require_base_of_start(settings, "owner/base")  # another revision of the same files
    assert [*start_doubts(settings, str(new))] == []  # their folder
    change_base(new)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        require_base_of_start(settings, "owner/base")
    assert caught.value.message.startswith(
        f"{adapter}: owner/base in revision new is not the base that it was trained on: model.saf"
    )
    assert caught.value.hint is not None and "download revision old into" in caught.value.hint
    [line] = start_doubts(settings, str(new))
    assert (
        "names another base model, owner/base" in line and "has another content (SHA-256)" in line
    )


def test_an_edited_final_is_noticed_before_a_training_from_it(made: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    base = Path(shutil.copytree(toy_base(made), tmp_path / "base"))
    origin: Any = SimpleNamespace(step=1, files={}, base=identify(str(base)))
    seal(adapter, origin, "abc", 1, "last")
    seal(base, SimpleNamespace(step=1, files={}, base=None), "abc", 1, "last")  # type: ignore[arg-type]
    from_both = configured(tmp_path, adapter, model__name=str(base))
    check_before_loading(from_both)
    change(adapter, **{FIRST: torch.zeros(2, 64)})
    with pytest.raises(CorruptCheckpoint, match="adapter: adapter_model.safetensors: "):
        check_before_loading(from_both)
    change_base(base)
    from_base = toy_config(tmp_path, model__name=str(base))
    with pytest.raises(CorruptCheckpoint, match="base: model.safetensors: its content was changed"):
        check_before_loading(from_base)


def test_targets_that_are_not_named_are_those_with_tensors_for_training_and_for_export(
    tmp_path: Path,
) -> None:
    """By the type of the model, peft would take q_proj and v_proj."""
    adapter = write(tmp_path)
    named = attach(AdapterFile.read(adapter))
    edit(adapter, target_modules=None)
    config = configured(tmp_path, adapter)
    assert {one.rpartition(".")[2] for one in config.adapter.targets or ()} == {"q_proj", "up_proj"}
    plan_run(config)
    unnamed = attach(AdapterFile.read(adapter))
    ours, theirs = unnamed.merged().state_dict(), named.merged().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_rank_that_the_tensors_do_not_have_is_refused_before_matrices_are_made(
    made: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    edit(adapter, r=65536)
    with pytest.raises(ConfigError, match="has rank 2, and its settings 65536"):
        attach(AdapterFile.read(adapter))


def change_base(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def test_rows_of_new_tokens_continue_only_under_their_own_names(tmp_path: Path) -> None:
    named = {"model__new_tokens": ["<tool>"]}
    run_training(lora_config(tmp_path, "first", train__max_steps=1, **named))
    start = tmp_path / "first/final"
    config = configured(tmp_path, start)
    plain = replace(config.model, new_tokens=["<tool>"])
    still = replace(config.optim, learning_rate=0.0)
    run_training(replace(config, model=plain, optim=still))
    ours, before = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "run/final", start)
    )
    assert ours["base_model.model.lm_head.weight"].shape[0] == 2049
    assert all(torch.equal(ours[name], before[name]) for name in before)
    other = replace(config.model, new_tokens=["<other>"])
    with pytest.raises(ConfigError) as caught:
        plan_run(replace(config, model=other, output_dir=tmp_path / "other"))
    assert caught.value.message == (
        f"model.new_tokens: token 2048 is <tool> in {start}, not <other>"
    )
    assert "model.new_tokens=<tool>,…" in str(caught.value.hint)
    missing = replace(config, output_dir=tmp_path / "missing")
    with pytest.raises(ConfigError, match="embed_tokens.weight is 2049 x 64, not 2048 x 64"):
        plan_run(missing)


@pytest.mark.parametrize("base", [None, "owner/other"])
def test_an_adapter_of_an_unknown_or_another_base_is_a_warning(
    made: Path, tmp_path: Path, base: str | None
) -> None:
    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    edit(adapter, base_model_name_or_path=base)
    config = configured(made, adapter, f"warned-{base is None}", model__name=str(toy_base(made)))
    [line] = [str(one) for one in plan_run(config).findings if one.level == "warning"]
    assert ("names no base" if base is None else "names another base model, owner/other") in line
