"""torch.compile for the layers, and its failures as errors for a user.

Compiling takes minutes: on a CPU, a C++ compiler runs for each kernel. So code whose speed does not
matter is run without compiling.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sftctl.errors import ConfigError, Stopped
from sftctl.train.engine.parallel import blocks
from sftctl.train.stop import StopRequest

_LONGEST_REASON = 200  # characters


def compile_blocks(module: torch.nn.Module) -> None:
    """Make each layer compile itself at its first call, once for all lengths of micro-batches."""
    for block in blocks(module):
        block.compile(dynamic=True)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether `compile_blocks` changed this module."""
    return any(one._compiled_call_impl is not None for one in module.modules())


@contextmanager
def uncompiled(module: torch.nn.Module) -> Iterator[None]:
    """Run the layers without their compiled kernels. For a few calls, compiling takes too long."""
    if not is_compiled(module):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def compiler_as_error(stop: StopRequest) -> Iterator[None]:
    """Turn a failure of torch.compile into ConfigError, or into Stopped if a signal has come.

    A terminal sends Ctrl-C to the C++ compiler too. When this ends the compiler, torch reports a
    failure.
    """
    try:
        yield
    except RuntimeError as problem:
        if not _is_from_the_compiler(problem):
            raise
        if stop.heard is None:
            raise ConfigError(
                f"train.compile: {_reason(problem)}", hint=_hint(problem)
            ) from problem
        if stop.outlook is None:
            stop.check()
        raise Stopped(
            f"by {stop.heard} while a layer was compiled: the step was not finished",
            hint="`sftctl resume` continues from the last checkpoint",
        ) from problem


def _is_from_the_compiler(problem: RuntimeError) -> bool:
    places = ("torch._dynamo.", "torch._inductor.")
    return any(kind.__module__.startswith(places) for kind in type(problem).__mro__)


def _reason(problem: RuntimeError) -> str:
    """The compiler's own error line if there is one, else the first line of the message."""
    inner = getattr(problem, "inner_exception", problem)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    named = (line for line in lines if "error: " in line)
    first = f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__
    return next(named, first)[:_LONGEST_REASON]


def _hint(problem: RuntimeError) -> str:
    if "ImportError" not in str(problem) and "OSError" not in str(problem):
        return "leave --compile out, or install a C++ compiler that torch can use"
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return f"a compilation was killed once: delete {cache_dir()}, or leave --compile out"
