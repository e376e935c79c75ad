"""The protocol of what survives a crash (the names are those of torch.distributed.checkpoint)."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is tensors or plain JSON values under string keys."""

    def state_dict(self) -> dict[str, Any]:
        """The state as it is now."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state that `state_dict` once gave."""
        ...
