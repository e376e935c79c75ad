"""What adapter_config.json must say: the same checks before a training and before an export."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from sftctl.config import existing_adapter
from sftctl.config.existing_adapter import layer_of, read_settings
from sftctl.config.load import Layer
from sftctl.errors import ConfigError
from sftctl.model.adapter.attach import AdapterFile
from sftctl.model.adapter.lora import import_peft
from sftctl.model.source import require_model_folder

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown option": ({"use_frobnicate": True}, "use_frobnicate = True is not known here"),
    "another task": (
        {"task_type": "SEQ_CLS"},
        "task_type is SEQ_CLS, but sftctl reads only CAUSAL_LM",
    ),
    "repeated layers": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is set"),
    "activated": ({"alora_invocation_tokens": [1, 5]}, "alora_invocation_tokens is set"),
    "no targets": ({"target_modules": []}, "target_modules = []: names no layer"),
    "numbers": ({"target_modules": [1, 2]}, "target_modules = [1, 2]: not a list of names"),
    "a number": ({"target_modules": 3}, "target_modules = 3: not a list of names"),
    "pattern": ({"target_modules": "(("}, "target_modules = '((': not a regular expression: "),
    "excluded": ({"exclude_modules": "(("}, "exclude_modules = '((': not a regular expression: "),
    "saved": ({"modules_to_save": "lm_head"}, "modules_to_save = 'lm_head': not a list of names"),
    "a rank as text": ({"r": "16"}, "r = '16': not a whole number"),
    "a broken rank": ({"r": 16.5}, "r = 16.5: not a whole number"),
    "no rank": ({"r": 0}, "r = 0: 0 is too small; at least 1"),
    "alpha as text": ({"lora_alpha": "x"}, "lora_alpha = 'x': not a number"),
    "a rank of 10^12": ({"r": 10**12}, f"r = {10**12}: {10**12} is too large; at most 65536"),
    "such a rank of a layer": (
        {"rank_pattern": {"q_proj": 10**12}},
        f"rank_pattern = {{'q_proj': {10**12}}}: q_proj: {10**12} is too large; at most 65536",
    ),
    "an alpha of a layer as text": (
        {"alpha_pattern": {"q_proj": "x"}},
        "alpha_pattern = {'q_proj': 'x'}: q_proj: not a number",
    ),
    "a list of ranks": ({"rank_pattern": [1]}, "rank_pattern = [1]: not a table that has a number"),
    "alpha below": ({"lora_alpha": -1}, "lora_alpha = -1: -1 is too small; at least 0"),
    "no value of alpha": ({"lora_alpha": None}, "lora_alpha = None: not a number"),
    "no value of the rank": ({"r": None}, "r = None: not a number"),
    "no value of the dropout": ({"lora_dropout": None}, "lora_dropout = None: not a number"),
    "quantized by its start": (
        {"init_lora_weights": "loftq"},
        "init_lora_weights is loftq: such an",
    ),
    "a random start": (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights is pissa_niter_4",
    ),
    "a start from data": ({"init_lora_weights": "corda"}, "init_lora_weights is corda: such an ad"),
    "dropout": ({"lora_dropout": 1.0}, "lora_dropout = 1.0: 1.0 is too large; it must be below 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_training_and_export_refuse_the_same_settings(tmp_path: Path, case: str) -> None:
    values, message = CASES[case]
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], **values}
    settings["base_model_name_or_path"] = "base"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    tensor = torch.zeros(2, 4)
    save_file({"q_proj.lora_A.weight": tensor}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError) as by_training:
        layer_of([Layer("flag", {"adapter.start": str(tmp_path)})])
    with pytest.raises(ConfigError) as by_export:
        AdapterFile.read(tmp_path)
    found = by_training.value
    assert found.message == by_export.value.message and found.hint and "\n" not in found.message
    assert found.message.startswith(f"{tmp_path / 'adapter_config.json'}: {message}")


def test_a_key_that_is_missing_has_the_default_of_peft(tmp_path: Path) -> None:
    """Not the default of this program, which is another one."""
    settings = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.q_proj.lora_A.weight"
    save_file({name: torch.zeros(4, 4)}, tmp_path / "adapter_model.safetensors")
    found = existing_adapter._settings_in(tmp_path)
    default = peft.LoraConfig()
    assert (found["rank"], found["alpha"]) == (4, default.lora_alpha)
    assert found["dropout"] == default.lora_dropout


def test_every_option_of_the_installed_peft_is_known(tmp_path: Path) -> None:
    """Else an adapter of a newer peft would be refused for an option that it does not use so."""
    assert {one.name for one in dataclasses.fields(peft.LoraConfig)} <= existing_adapter._PEFT_KEYS
    peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    assert read_settings(tmp_path)["r"] == 8


def test_a_folder_around_an_adapter_is_no_adapter_and_the_hint_names_it(tmp_path: Path) -> None:
    for made, named in (("checkpoint-9", 9), ("checkpoint-10", 10), ("final", None)):
        (tmp_path / made).mkdir()
        (tmp_path / made / "adapter_config.json").write_text("{}")
        with pytest.raises(ConfigError, match="No such file") as raised:
            read_settings(tmp_path)
        inside = tmp_path / (f"checkpoint-{named}" if named else "final")
        assert raised.value.hint == f"did you mean {inside}?"
    with pytest.raises(ConfigError, match=": a run of an adapter, not a model") as refused:
        require_model_folder(str(tmp_path))
    assert f"--adapter {tmp_path / 'final'} continues to train it" in str(refused.value.hint)


def test_a_package_that_fails_on_import_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # makes `import peft` raise ImportError
    with pytest.raises(ConfigError, match="peft can't be imported: ") as raised:
        import_peft()
    assert "bitsandbytes" in str(raised.value.hint)
