"""The exception that means "the user can fix this": entry points turn it into one line and an exit status."""

import logging
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake in input or configuration: what was wrong, the value, what is allowed, what to do.

    Entry points print the message as one line and exit with status 1, without a traceback.
    """


def run_entry_point(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Calls `main(arguments)` and exits: 0 done, 1 bad input, 2 usage (argparse), 130 interrupted.

    What the package logs, such as which kernels it chose and why, goes to standard error, a line each.

    Args:
      main: takes the command line without the program's name.
      arguments: the command line; `sys.argv[1:]` when None.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("nextflow_jax").setLevel(logging.INFO)
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
