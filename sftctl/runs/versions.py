"""What can change a run's numbers besides the run."""

import platform
from importlib.metadata import version

import torch

from sftctl import __version__


def versions() -> dict[str, str]:
    """Of sftctl, Python and the packages that compute; and the CPU's vector instructions."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    own = {"sftctl": __version__, "python": platform.python_version()}
    return {**own, **packages, "cpu": torch.backends.cpu.get_cpu_capability()}
