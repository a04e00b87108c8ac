"""The exceptions that end a command in one line and an exit status: the user can fix this, or a restart cures it."""

import logging
import sys
import traceback
from collections.abc import Callable, Sequence

DONE, BAD_INPUT, USAGE, DOES_NOT_FIT = 0, 1, 2, 3
TRANSIENT = 75
"""EX_TEMPFAIL of sysexits.h."""
INTERRUPTED = 130

NOT_CURED_BY_RESTART = (BAD_INPUT, USAGE, DOES_NOT_FIT)
"""Statuses after which the same command would end in the same way."""


class UserError(Exception):
    """A mistake in input or configuration: what was wrong, the value, what is allowed, what to do.

    Entry points print the message as one line and exit with status 1, without a traceback.
    """


class DoesNotFit(UserError):
    """A program needs more memory than a device has: what to change. Entry points exit with status 3."""


class TransientError(Exception):
    """The surroundings failed (another process, a device, a disk): the same command may go on once they are well.

    Entry points print the message as one line and exit with status 75, at which launchers start the command again.
    """


STATUSES = ((DoesNotFit, DOES_NOT_FIT), (UserError, BAD_INPUT), (TransientError, TRANSIENT))
"""Exit status of each kind of error; the first that it is."""


def run_entry_point(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Calls `main(arguments)` and exits: 0 done, 1 bad input, 2 usage, 3 does not fit, 75 try again, 130 interrupted.

    What the package logs, such as which kernels it chose and why, goes to standard error, a line each.

    Args:
      main: takes the command line without the program's name.
      arguments: the command line; `sys.argv[1:]` when None.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("nextflow_jax").setLevel(logging.INFO)
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except (UserError, TransientError, KeyboardInterrupt) as error:
        sys.exit(report(error))
    sys.exit(DONE)


def report(error: BaseException) -> int:
    """Tells the user of an error on standard error, in one line where it is one of ours; returns the exit status."""
    status = BAD_INPUT
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else BAD_INPUT
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted; run the same command again to continue", file=sys.stderr)
        status = INTERRUPTED
    elif isinstance(error, UserError | TransientError):
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        status = next(code for kind, code in STATUSES if isinstance(error, kind))
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    return status
