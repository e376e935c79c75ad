"""What transformers and tokenizers warn about while they load, as our own warnings."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_told: set[str] = set()
_NOT_NEWS = "You are using a model of type"
"""A tokenizer's folder has a model that transformers does not know: only the model needs it."""


class _Teller(logging.Handler):
    """Prints each warning once."""

    def __init__(self, about: str) -> None:
        super().__init__(logging.WARNING)
        self._about = about

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith(_NOT_NEWS):
            self.tell(record.getMessage())

    def tell(self, message: str) -> None:
        """Print `warning: ABOUT: message` on stderr, as one line, unless it was printed before."""
        line = f"warning: {self._about}: {' '.join(message.split())}"
        if line not in _told:
            _told.add(line)
            print(line, file=sys.stderr, flush=True)


@contextmanager
def library_warnings(about: str) -> Iterator[None]:
    """Print what the libraries warn about in this block, each as one `warning:` line."""
    logger, teller = logging.getLogger("transformers"), _Teller(about)
    handlers, level = logger.handlers, logger.level
    logger.handlers = [teller]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    for warning in caught:
        if not issubclass(warning.category, (DeprecationWarning, FutureWarning)):
            teller.tell(str(warning.message))
