"""The toy task in processes of their own: one or several, told what to train, watched and killed.

Run as a program this is such a process: standard input brings one run after the other, and a line on standard output
answers each that ended.
"""

import contextlib
import faulthandler
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
import types
from unittest import mock

import jax

from nextflow_jax import compile_cache
from nextflow_jax.distributed import VARIABLES, DistributedConfig, joined
from nextflow_jax.errors import run_entry_point
from nextflow_jax.supervise import free_port, job_environment
from nextflow_jax.training import saving
from nextflow_jax.training.checkpoint_local import LocalTier
from nextflow_jax.training.loop import train
from nextflow_jax.training.workdir import prepare_workdir

ROOT = pathlib.Path(__file__).parents[2]
LIMIT_SECONDS = 120
"""A run that takes longer hangs: its processes print the stack of every thread and end."""
_POLL_SECONDS = 0.02
_ENDED = b"this run has ended\n"


class ToyJob:
    """A job that makes one run after the other; its processes start when they are needed, also after they died.

    Args:
      folder: where what they say goes.
      processes: how many; several share eight devices, one has one.
    """

    def __init__(self, folder, processes):
        self.processes = []
        self._folder, self._count = folder, processes
        self._starts, self._told = 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        self.statuses()

    def begin(self, workdir, experiment, task, **faults):
        """Begins a run; `faults` are those of `_faults`."""
        if not self.processes:
            self._start()
        self._told = len(self._log(0).read_text())
        for process in self.processes:
            pickle.dump((workdir, experiment, task, faults), process.stdin)
            process.stdin.flush()

    def run(self, *arguments, **faults):
        """Makes a run to its end; returns what the job said in it."""
        self.begin(*arguments, **faults)
        return self.wait()

    def wait(self):
        """Until the run has ended; returns what the job said in it."""
        for index, process in enumerate(self.processes):
            # JAX's collectives say something on standard output, too.
            assert _ENDED in process.stdout, f"process {index} ended:\n{self.said(index)}"
        return self.said()

    def said(self, process=0):
        """What a process said, in this run where it is the first."""
        return self._log(process).read_text()[self._told if process == 0 else 0 :]

    def wait_until(self, condition):
        """Until `condition()`."""
        end = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert time.monotonic() < end, self.said()
            time.sleep(_POLL_SECONDS)

    def statuses(self):
        """The exit statuses, once no run is left to make or all have died."""
        for process in self.processes:
            # What was written to a process that died cannot be flushed.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        statuses = [process.wait(LIMIT_SECONDS) for process in self.processes]
        for process in self.processes:
            process.stdout.close()
        self.processes = []
        return statuses

    def _start(self):
        self._starts += 1
        port = free_port()
        for index in range(self._count):
            devices = 8 // self._count if self._count > 1 else 1
            environment = {**os.environ, **job_environment(index, self._count, port, devices), "PYTHONPATH": str(ROOT)}
            with self._log(index).open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, __file__],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            self.processes.append(process)

    def _log(self, process):
        return self._folder / f"start-{self._starts}-process-{process}.txt"


@contextlib.contextmanager
def _faults(clock_stands=False, stuck_at=0):
    """What goes wrong in the last process of a job: its clock, the disk when it writes a local checkpoint."""
    write = LocalTier._write

    def writing(self, step, *arguments):
        if step == stuck_at:
            threading.Event().wait()
        write(self, step, *arguments)

    last = jax.process_index() == jax.process_count() - 1
    with contextlib.ExitStack() as faults:
        if last and clock_stands:
            faults.enter_context(mock.patch.object(saving, "time", types.SimpleNamespace(monotonic=float)))
        if last and stuck_at:
            faults.enter_context(mock.patch.object(LocalTier, "_write", writing))
        yield


def main(_):
    """Makes the runs that standard input brings."""
    in_job = VARIABLES[0] in os.environ
    membership = joined(DistributedConfig()) if in_job else contextlib.nullcontext()
    with membership, contextlib.suppress(EOFError):
        compile_cache.enable()
        while True:
            workdir, experiment, task, faults = pickle.load(sys.stdin.buffer)
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
            with _faults(**faults):
                train(experiment, task, prepare_workdir(workdir))
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.buffer.write(_ENDED)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    run_entry_point(main)
