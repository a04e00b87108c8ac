"""`python -m nextflow_jax.supervise`: starts the processes of a job on this machine, and all again when one dies."""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from nextflow_jax.errors import NOT_CURED_BY_RESTART, UserError, run_entry_point
from nextflow_jax.maintenance import POLL_SECONDS, Notices

DESCRIPTION = """\
Runs a command in PROCESSES processes of this machine that form one job (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID are set; train --distributed reads them). When one dies, the others are stopped and all start again,
from the last checkpoint. A status of 1, 2 or 3 (bad input, usage, does not fit) is not tried again. SIGTERM and Ctrl-C
are passed on: the job saves and ends; with --maintenance gce it does so, too, when Google gives notice that this
machine will be taken away. SIGUSR1 is passed on: training writes a profile. With one process nothing is set: on a
machine of a pod, it keeps that machine's part of the job alive. Lines of processes other than the first begin with
their number."""

EXAMPLE = (
    "--processes 4 --devices 2 -- python -m nextflow_jax.train --distributed "
    "--config experiments/openmoji/quickstart.py:decoder --workdir runs/decoder"
)

_POLL_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Supervises; see --help. Exits with the status of the job."""
    options = _parse(arguments)
    stop = _Stop()
    if options.maintenance:
        _heed_notices(stop)
    restarts = 0
    status = 0
    while not stop.asked:
        began = time.monotonic()
        status = _run_once(options, stop)
        if status == 0 or stop.asked or status in NOT_CURED_BY_RESTART:
            break
        restarts = 0 if time.monotonic() - began >= options.healthy_seconds else restarts
        if restarts == options.max_restarts:
            _say(f"{_ended(status)}; {restarts} restarts in a row did not help, giving up")
            break
        restarts += 1
        pause = min(options.pause * 2 ** (restarts - 1), _LONGEST_PAUSE_SECONDS)
        _say(f"{_ended(status)}; restart {restarts} of {options.max_restarts} in {pause:g} s")
        stop.wait(pause)
    sys.exit(128 - status if status < 0 else status)


def job_environment(process: int, processes: int, port: int, devices: int) -> dict[str, str]:
    """The variables that make process `process` of `processes` part of a job on this machine.

    Args:
      process: its number; 0 coordinates.
      processes: how many there are; with one, none of JAX_* is set.
      port: where the first listens.
      devices: simulated CPU devices of each; 0 = the real ones.
    """
    variables = {}
    if processes > 1:
        variables["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        variables["JAX_NUM_PROCESSES"] = str(processes)
        variables["JAX_PROCESS_ID"] = str(process)
    if devices:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        variables["JAX_PLATFORMS"] = "cpu"
    return variables


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class _Stop:
    """Being asked to stop, by SIGTERM, Ctrl-C or a notice: remembered, and passed on to the processes that run.

    SIGUSR1, which asks training for a profile, is passed on and nothing else.
    """

    def __init__(self) -> None:
        self.asked = False
        self.children: list[subprocess.Popen] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)
        signal.signal(signal.SIGUSR1, self._ask_for_profile)

    def wait(self, seconds: float) -> bool:
        """Sleeps, at most until asked to stop; returns whether it was."""
        end = time.monotonic() + seconds
        while not self.asked and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return self.asked

    def ask(self, *_: object) -> None:
        """Makes the job save and end; also a signal's handler."""
        self.asked = True
        for child in self.children:
            child.send_signal(signal.SIGTERM)

    def _ask_for_profile(self, *_: object) -> None:
        for child in self.children:
            child.send_signal(signal.SIGUSR1)


def _heed_notices(stop: _Stop) -> None:
    """Waits while a notice stands, then stops the job at the next one.

    A job that was stopped by a notice is started again before its machine is taken: it would train into the cut.
    """
    notices = Notices(_say)
    notice = notices.standing()
    if notice:
        _say(f"{notice}; the job is started when that is over")
    while notice and not stop.wait(POLL_SECONDS):
        notice = notices.standing()

    def tell(notice: str) -> None:
        _say(f"{notice}; the job saves and ends")
        stop.ask()

    notices.watch(tell)


def _run_once(options: argparse.Namespace, stop: _Stop) -> int:
    """One life of the job: 0 when every process ended well, else the status of the one that failed first."""
    port, first = free_port(), 0
    with contextlib.ExitStack() as stack:
        children = []
        for process in range(options.processes):
            variables = job_environment(process, options.processes, port, options.devices)
            children.append(stack.enter_context(_child(options.command, variables, process)))
        stop.children = children
        if stop.asked:
            return 0
        while any(child.poll() is None for child in children):
            failed = [child.returncode for child in children if child.poll()]
            if failed:
                first = failed[0]
                _end(children, options.grace)
            time.sleep(_POLL_SECONDS)
        failed = [child.returncode for child in children if child.returncode]
    stop.children = []
    return first or (failed[0] if failed else 0)


@contextlib.contextmanager
def _child(command: Sequence[str], variables: Mapping[str, str], process: int) -> Iterator[subprocess.Popen]:
    """A process of the job, in a session of its own: Ctrl-C on a terminal reaches it through the supervisor alone."""
    output = None if process == 0 else subprocess.PIPE
    child = subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_prepare,
    )
    reader = threading.Thread(target=_copy_lines, args=(child.stdout, process), daemon=True) if output else None
    if reader:
        reader.start()
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if reader:
            reader.join(timeout=5)


def _end(children: Sequence[subprocess.Popen], grace: float) -> None:
    """Lets the others notice that one is dead, then kills them: without it they cannot save."""
    end = time.monotonic() + grace
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    for child in children:
        if child.poll() is None:
            child.kill()


def _copy_lines(source: IO[bytes], process: int) -> None:
    for line in source:
        sys.stderr.write(f"[{process}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def _prepare() -> None:
    """In the child, before the command: what holds from its first moment on.

    A supervisor that is killed leaves no job behind, to be met by the next one in the same folder. SIGUSR1, passed on
    to a command that does not listen to it, or not yet, is nothing.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ended(status: int) -> str:
    return f"a process was ended by {signal.Signals(-status).name}" if status < 0 else f"a process ended with {status}"


def _say(message: str) -> None:
    print(f"supervise: {message}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    program = "python -m nextflow_jax.supervise"
    parser = argparse.ArgumentParser(
        prog=program,
        description=DESCRIPTION,
        epilog=f"example: {program} {EXAMPLE}\n\nexit status: that of the job (128 + N: signal N ended it); 2 usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of the job (default: 1)")
    parser.add_argument(
        "--devices", type=int, default=0, metavar="M", help="simulated CPU devices of each (default: 0, the real ones)"
    )
    parser.add_argument(
        "--max_restarts", type=int, default=10, metavar="N", help="restarts in a row before giving up (default: 10)"
    )
    parser.add_argument(
        "--healthy_seconds",
        type=float,
        default=600,
        metavar="S",
        help="a job that lived so long counts its restarts anew (default: 600)",
    )
    parser.add_argument(
        "--grace", type=float, default=10, metavar="S", help="seconds the others get to end by themselves (default: 10)"
    )
    parser.add_argument(
        "--pause", type=float, default=1, metavar="S", help="before the first restart; doubles each time (default: 1)"
    )
    parser.add_argument(
        "--maintenance",
        choices=("gce",),
        help="gce: heed the notices of maintenance and preemption on the metadata server of a Google Cloud VM",
    )
    parser.add_argument("command", nargs="+", help="after --, the command of every process")
    options = parser.parse_args(list(arguments))
    for name, least in {"processes": 1, "devices": 0, "max_restarts": 0}.items():
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least {least}")
    return options


if __name__ == "__main__":
    run_entry_point(main)
