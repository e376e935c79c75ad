"""Show the warnings that transformers and tokenizers give during loading as sftctl's warnings."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from sftctl.model.source import on_stderr

_NOT_OURS = (" LOAD REPORT", "You are using a model of type", "generation flags are not valid")
_OF_MODELS = ("`rope_parameters`",)
_OF_MODELS_ONCE = ("Model config: ", "config.rope_parameters")
"""Warnings with these texts are dropped.

The first is a table of names that do not fit: the message of `weight_names` says more. The second
is about a model type that transformers does not know, which matters only for the model. The third
is about settings for sampling that sftctl does not use. While a tokenizer is loaded, transformers
reads the model's configuration too. `_OF_MODELS` are dropped then, because they come again with the
model. `_OF_MODELS_ONCE` come only once, and are printed as warnings about the model.
"""


class _Collector(logging.Handler):
    """Collects warnings, each as one line of text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, message: str) -> None:
        """Keep a message as one line, unless it is one of `_NOT_OURS`."""
        if not any(part in message for part in _NOT_OURS):
            self.lines.append(" ".join(message.split()))


@contextmanager
def library_warnings(about: str, warn: Callable[[str], None] = on_stderr) -> Iterator[None]:
    """At the end of the context, call `warn` with each warning of the libraries, as one line.

    In the context, nothing is written to stderr. Some progress bars of transformers can't be turned
    off in another way.
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
            is_of_model = any(part in line for part in _OF_MODELS_ONCE)
            subject = about.replace("tokenizer ", "model ", 1) if is_of_model else about
            warn(f"{subject}: {line}")
