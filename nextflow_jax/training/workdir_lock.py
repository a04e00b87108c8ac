"""One job at a time in a run's folder: the first process holds a lock on the file `lock` there while it trains.

The operating system takes the lock back when that process ends, however it ends, so that none is ever left behind. It
holds between machines where their file system has locks (NFS has); where there are none, nothing is checked.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

import jax

from nextflow_jax.errors import TransientError

LOCK_FILE = "lock"

_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def only_job(workdir: pathlib.Path) -> Iterator[None]:
    """Within it, no other job trains in the folder.

    Raises:
      TransientError: one does; says which process on which machine, and since when.
    """
    if jax.process_index() != 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            # Of a process, not of an open file as flock's: a data worker that outlives this one does not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                raise TransientError(
                    f"--workdir {workdir}: {file.read().strip() or 'another process'} trains there; wait until it has "
                    "ended, or choose another folder"
                ) from error
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},\n")
        file.flush()
        yield
