"""A save that fails raises one error; what Orbax and the storage of arrays print of it besides, by the page, goes."""

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import Any

_LEFT_BEHIND = "Event loop is closed"


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """Within it; after an error also from then on, for writes that a failed save left behind end when they end.

    Orbax closes the event loop of a save at the first write that fails. Each of the others then finds no loop to report
    to, which Python prints as an exception that nobody can catch.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(_is_news)
    sys.unraisablehook = functools.partial(_tell, before)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)
    sys.unraisablehook = before


def _is_news(record: logging.LogRecord) -> bool:
    """Not a stack trace of Orbax for every thread of a save."""
    return not (record.levelno == logging.ERROR and "orbax" in record.pathname)


def _tell(before: Any, unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _LEFT_BEHIND):
        before(unraisable)
