"""What a failing compiler, or a signal while it runs, means to a user; and what is not compiled."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.errors import ConfigError, Stopped
from sftctl.train.engine import build
from sftctl.train.engine.compiled import compiler_as_error
from sftctl.train.engine.parallel import blocks
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from tests.toys.runs import toy_config

GXX = "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nx.cpp:7:1: error: no room here\n"


def failing(*args: Any) -> Any:
    raise RuntimeError(GXX)


def compiled_by(backend: Callable[..., Any]) -> Callable[[torch.nn.Module], None]:
    def compile_each(module: torch.nn.Module) -> None:
        for block in blocks(module):
            block.compile(backend=backend)

    return compile_each


def failure(inner: Exception) -> RuntimeError:
    """What torch raises if its compiler fails."""
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed(failing, inner, inspect.currentframe())


def test_a_compiler_that_fails_is_one_line_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "compile_blocks", compiled_by(failing))
    with pytest.raises(ConfigError) as caught:
        run_training(toy_config(tmp_path, train__compile=True, train__max_steps=1))
    assert caught.value.message == "train.compile: x.cpp:7:1: error: no room here"
    assert str(caught.value.hint).startswith("leave --compile out")
    assert not (tmp_path / "run").exists()


def test_a_signal_that_also_ends_the_compiler_stops_the_run() -> None:
    problem, stop = failure(RuntimeError(GXX)), StopRequest()
    stop._signal_name = "SIGINT"
    with pytest.raises(Stopped, match="by SIGINT before training began"), compiler_as_error(stop):
        raise problem
    stop.outlook = lambda: "training"
    with pytest.raises(Stopped, match="by SIGINT while a layer was comp"), compiler_as_error(stop):
        raise problem


def test_a_damaged_cache_is_named_and_other_errors_stay() -> None:
    torn = failure(ImportError("x.so: file too short"))
    with pytest.raises(ConfigError) as caught, compiler_as_error(StopRequest()):
        raise torn
    assert "file too short" in caught.value.message
    assert "a compilation was killed once: delete /" in str(caught.value.hint)
    with pytest.raises(RuntimeError, match="^ours$"), compiler_as_error(StopRequest()):
        raise RuntimeError("ours")
