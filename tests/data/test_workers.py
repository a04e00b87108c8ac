"""Worker processes: no accelerator in them, and none outlives the process that started it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

from nextflow_jax.data.workers import start_worker

PARENT = """
import multiprocessing, time
from tests.data.test_workers import sleep_as_worker
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=sleep_as_worker)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def sleep_as_worker():
    start_worker(0, 1)
    time.sleep(60)


def platforms(queue):
    start_worker(0, 1)
    import jax

    queue.put((os.environ["JAX_PLATFORMS"], [device.platform for device in jax.devices()]))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_workers_see_the_cpu_alone():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=platforms, args=(queue,))
    worker.start()
    name, devices = queue.get(timeout=60)
    worker.join()
    assert name == "cpu" and set(devices) == {"cpu"}


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    time.sleep(3)  # so that it has started
    assert is_running(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)
