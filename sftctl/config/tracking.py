"""TrackingConfig: which numbers are logged, and to which services."""

from dataclasses import dataclass
from difflib import get_close_matches

from sftctl.config.bounds import Count, CountFrom0
from sftctl.errors import ConfigError

TRACKERS = ("wandb", "tensorboard", "trackio", "swanlab")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """What is logged, and where."""

    log_interval: Count = 10
    """Print a line on the console every N steps. (metrics.jsonl has every step.)"""
    trackers: list[str] | None = None
    """Services to log to: wandb, tensorboard, trackio, swanlab. To use one of the last three,
    install the extra of this name."""
    wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline works)."""
    wandb_project: str = "sftctl"
    """Name of the project in W&B, Trackio and SwanLab."""
    wandb_artifact: bool = False
    """Also upload the finished model (`final/`) to W&B, as an artifact."""
    samples: CountFrom0 = 0
    """How many validation prompts the model answers at each evaluation. This does not change the
    training. Not available with fsdp."""

    def __post_init__(self) -> None:
        for name in self.trackers or ():
            if name not in TRACKERS:
                similar = get_close_matches(name, TRACKERS, n=1)
                meant = f"; did you mean {similar[0]}?" if similar else ""
                raise ConfigError(
                    f"tracking.trackers: {name} is not a tracker{meant}",
                    hint=f"there are {', '.join(TRACKERS)}",
                )

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all services to log to, without duplicates."""
        return tuple(dict.fromkeys([*(["wandb"] if self.wandb else []), *(self.trackers or [])]))
