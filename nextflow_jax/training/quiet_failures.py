"""A save that fails raises one error; what Orbax and the storage of arrays print of it besides, by the page, goes."""

import functools
import logging
import sys
import warnings
from typing import Any

_CLOSED = "Event loop is closed"
_NOT_BEGUN = r"coroutine 'async_serialize.*' was never awaited"
_LEFT_BEHIND = ("exception was never retrieved", "Task was destroyed but it is pending")


def quiet_failures() -> None:
    """From now on, for writes that a failed save left behind end when they end.

    Orbax closes the event loop of a save at the first write that fails. Each of the others then finds no loop to report
    to, which Python prints as an exception that nobody can catch; asyncio logs that nobody asked for its result, and
    warns of those that had not begun, whenever their memory is collected.
    """
    logging.getLogger("absl").addFilter(_is_no_trace)
    logging.getLogger("asyncio").addFilter(_is_not_left_behind)
    warnings.filterwarnings("ignore", _NOT_BEGUN, RuntimeWarning)
    if getattr(sys.unraisablehook, "func", None) is not _tell:
        sys.unraisablehook = functools.partial(_tell, sys.unraisablehook)


def _is_no_trace(record: logging.LogRecord) -> bool:
    """Not a stack trace of Orbax for every thread of a save."""
    return not (record.levelno == logging.ERROR and "orbax" in record.pathname)


def _is_not_left_behind(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in _LEFT_BEHIND)


def _tell(before: Any, unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _CLOSED):
        before(unraisable)
