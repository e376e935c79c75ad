"""What `auto` becomes on a CPU and on a Mac's GPU, and which dtypes are refused."""

from dataclasses import replace

import pytest
import torch

from sftctl.errors import ConfigError
from sftctl.train.engine import dtype
from sftctl.train.engine.dtype import BFLOAT16_WIDTH, choose_dtype
from tests.toys.steps import ALONE, make_config, make_model


def test_on_a_cpu_auto_is_float32_for_a_narrow_model_and_other_types_are_kept() -> None:
    chosen = [
        choose_dtype(make_config(dtype=dtype), make_model(), ALONE).train.dtype
        for dtype in ("auto", "float32", "bfloat16", "float16")
    ]
    assert chosen == ["float32", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize(("has_bfloat16", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_on_a_cpu_auto_is_bfloat16_for_a_wide_model_if_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, chosen: str
) -> None:
    """This machine's processor is replaced by one of each kind."""
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda: has_bfloat16)
    config = make_config(dtype="auto")
    model = make_model(hidden_size=BFLOAT16_WIDTH)
    assert choose_dtype(config, model, ALONE).train.dtype == chosen
    narrow = make_model(hidden_size=BFLOAT16_WIDTH - 64)
    assert choose_dtype(config, narrow, ALONE).train.dtype == "float32"


def test_a_macs_gpu_computes_in_float32_or_bfloat16() -> None:
    mps, model = replace(ALONE, device=torch.device("mps")), make_model()
    for setting, chosen in (("auto", "float32"), ("bfloat16", "bfloat16")):
        assert choose_dtype(make_config(dtype=setting), model, mps).train.dtype == chosen
    with pytest.raises(ConfigError, match="float16 is not used on mps"):
        choose_dtype(make_config(dtype="float16"), model, mps)
    with pytest.raises(ConfigError, match="exact sums need float64, which mps lacks"):
        choose_dtype(make_config(reduction="exact"), model, mps)
