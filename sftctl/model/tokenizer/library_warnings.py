"""Show the warnings of transformers and tokenizers during loading as our own warnings."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from sftctl.model.source import on_stderr

_NOT_OURS = (" LOAD REPORT", "You are using a model of type")
_OF_MODELS = ("`rope_parameters`",)
"""Texts of warnings that are dropped: the table of names that do not fit (`weight_names` says
more), and a remark about a type that transformers does not know, which only the model needs.
`_OF_MODELS` are dropped while a tokenizer is loaded, because the model's configuration is read
then too."""


class _Collector(logging.Handler):
    """Collects warnings, each as one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, message: str) -> None:
        """Keep a message as one line, unless a line of our own says the same."""
        if not any(part in message for part in _NOT_OURS):
            self.lines.append(" ".join(message.split()))


@contextmanager
def library_warnings(about: str, warn: Callable[[str], None] = on_stderr) -> Iterator[None]:
    """At the end of this block, call `warn` with each warning of the libraries, as one line.

    Nothing else reaches stderr, because one of transformers' progress bars can't be turned off.
    """
    logger, collector = logging.getLogger("transformers"), _Collector()
    handlers, level = logger.handlers, logger.level
    logger.handlers = [collector]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stderr(StringIO()):
            yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
        for warning in caught:
            if not issubclass(warning.category, (DeprecationWarning, FutureWarning)):
                collector.add(str(warning.message))
        for line in collector.lines:
            if about.startswith("tokenizer ") and any(part in line for part in _OF_MODELS):
                continue
            warn(f"{about}: {line}")
