"""The versions that can change a run's numbers."""

import platform
from importlib.metadata import version

from sftctl import __version__


def versions() -> dict[str, str]:
    """Of sftctl, Python and the packages that compute."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {"sftctl": __version__, "python": platform.python_version(), **packages}
