"""New processes that are forked from one that has imported torch: milliseconds, not five seconds.

`WARM` is a context of multiprocessing. Its processes take over the environment, the working
directory and the output streams that the caller has when it starts them, as spawned ones do.
"""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any

OUTPUT_STREAMS = (1, 2)


class WarmProcess(ForkServerProcess):
    """A process of the fork server, with the environment and the streams of whoever starts it."""

    def __getstate__(self) -> dict[str, Any]:
        streams = [DupFd(stream) for stream in OUTPUT_STREAMS]
        return self.__dict__ | {"_outside": (dict(os.environ), streams)}

    def run(self) -> None:
        """Call the target as `spawn` would."""
        environment, streams = self.__dict__.pop("_outside")
        os.environ.clear()
        os.environ.update(environment)
        for stream, given in zip(OUTPUT_STREAMS, streams, strict=True):
            os.dup2(given.detach(), stream)
        super().run()


class WarmContext(ForkServerContext):
    """Starts WarmProcesses."""

    _name = "warm"
    Process = WarmProcess


WARM = WarmContext()
# The process that forks never trains, because torch can't be forked after its threads have worked.
WARM.set_forkserver_preload(
    [
        "sftctl.cli.train_commands",
        "sftctl.train.preflight.paths",
        "sftctl.train.launch",
        "sftctl.train.run",
        "torch._dynamo",
        "torch.onnx",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def spawn_warm() -> None:
    """From now on whatever this process spawns is warm: ranks, and processes of bench-loader."""
    multiprocessing.context._concrete_contexts["spawn"] = WARM  # type: ignore[attr-defined]
