"""Is a job of several processes the same run as one process, and does it survive kill -9 and SIGTERM at any moment?

Four processes of two simulated CPU devices each train the OpenMoji quickstart's smoke decoder on a mesh of data 2 x
fsdp 2 x tensor 2, started by `python -m nextflow_jax.supervise`. The same run is done by one process with one device,
undisturbed; its losses are the reference. Then, at random moments, by turns counted from each start of the processes
(imports, compilation, restoring are hit) and from the first step after it (steps and saving are):

- kill: one process at random gets SIGKILL, again and again; the supervisor starts all anew;
- stop: the supervisor gets SIGTERM, and the same command is given again; stop_alone: likewise for the one process.

Steps that a killed run did again are compared as they stand in its metrics.jsonl at the end; parameters, moments and
data position by the checksum of the last checkpoint's arrays.

Command (the shards of a smoke quickstart, `launch/quickstart.sh --smoke`, are in SHARDS):

    python experiments/bench/multi_process.py --shards SHARDS --out DIR --steps 40 [--only alone,together]

Cost: 2 CPU cores that others used, too: alone 13 s, together 71, kill 700, stop 1,100, stop_alone 395.
Result: (jax 0.10.2, Python 3.11, 40 steps) together: the largest difference of a loss to those of one process 5.3e-7.
kill: 20 in one run, after steps 3, 3, 4 (six times), 1, 1, 4, 4, 1, 1, 3, 3, 4, 4, 6 and 6 (what is killed before its
first checkpoint begins anew); all 40 steps are in the metrics, losses and weights the same bit for bit. stop: 20
SIGTERMs over eight runs of the job of four, after steps 2 to 13, likewise; stop_alone: 20 over three runs, likewise.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from nextflow_jax.training.checkpoint import checkpoint_steps, restore_variables
from nextflow_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = "experiments/openmoji/quickstart.py:decoder,smoke"
PROCESSES, DEVICES = 4, 2
STARTING = 20.0
"""Seconds after a start within which it is disturbed, in every other turn."""
STEPPING = 6.0
"""Seconds after the first step within which it is disturbed, in the turns between."""


def train_command(shards: str, workdir: pathlib.Path, steps: int, *more: str) -> list[str]:
    """The command of every process."""
    settings = {"pipeline.shards": shards, "train.steps": steps, "train.batch_size": 8, "train.checkpoint_every": 4}
    settings |= {"train.log_every": 1, "train.tensorboard": False}
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "nextflow_jax.train", "--config", EXPERIMENT, "--workdir", str(workdir)]
    return [*command, *overrides, *more]


def supervised(shards: str, workdir: pathlib.Path, steps: int) -> list[str]:
    """The command of the job of several processes."""
    supervise = [sys.executable, "-m", "nextflow_jax.supervise", "--processes", str(PROCESSES), "--devices"]
    # Every start counts as healthy, or the pauses between restarts would grow.
    supervise += [str(DEVICES), "--pause", "0.2", "--healthy_seconds", "1", "--grace", "2", "--"]
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    return [*supervise, *train_command(shards, workdir, steps, "--distributed", *mesh)]


def start(command: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Starts a command in the repository's root; what it says goes to the end of a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def finished(workdir: pathlib.Path, steps: int) -> bool:
    """Whether the last checkpoint is there."""
    return steps in checkpoint_steps(workdir)


def children(process: subprocess.Popen) -> list[int]:
    """Ids of the processes that one started."""
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def wait_for_moment(job: subprocess.Popen, workdir: pathlib.Path, among_steps: bool, rng: random.Random) -> None:
    """Returns at a random moment of a start that has just begun, or when the job has ended."""
    began = time.time()
    while among_steps and job.poll() is None:
        records = read_metrics(workdir) if workdir.is_dir() else []
        if records and records[-1]["time"] > began:
            break
        time.sleep(0.05)
    end = time.monotonic() + rng.uniform(0, STEPPING if among_steps else STARTING)
    while job.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def last_step(workdir: pathlib.Path) -> int:
    """The last one in its metrics; 0 before the first."""
    records = read_metrics(workdir)
    return records[-1]["step"] if records else 0


def kill_at_random(command: list[str], workdir: pathlib.Path, moments: int, rng: random.Random) -> list[int]:
    """Runs the job to its end while one process after another is killed; returns the steps after which they were."""
    killed, before = [], set()
    job = start(command, workdir.with_suffix(".log"))
    while job.poll() is None and len(killed) < moments:
        alive = children(job)
        if len(alive) < PROCESSES or before & set(alive):
            time.sleep(0.1)
            continue
        before = set(alive)
        wait_for_moment(job, workdir, len(killed) % 2 == 0, rng)
        victims = [child for child in children(job) if child in before]
        if victims and job.poll() is None:
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed.append(last_step(workdir))
    job.wait()
    return killed


def stop_at_random(
    command: list[str], workdir: pathlib.Path, steps: int, moments: int, rng: random.Random
) -> list[int]:
    """Runs the job to its end while it is told to stop and started again; returns the steps after which it was."""
    stopped = []
    while not finished(workdir, steps):
        job = start(command, workdir.with_suffix(".log"))
        if len(stopped) < moments:
            wait_for_moment(job, workdir, len(stopped) % 2 == 0, rng)
            if job.poll() is None:
                job.send_signal(signal.SIGTERM)
                stopped.append(last_step(workdir))
        job.wait()
    return stopped


def fingerprint(workdir: pathlib.Path) -> str:
    """Of the parameters in the last checkpoint."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(restore_variables(workdir).params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def compare(workdir: pathlib.Path, reference: pathlib.Path) -> dict[str, object]:
    """Steps logged, the largest difference of a loss, and whether the weights are the same to the bit."""
    ours, theirs = ({record["step"]: record["loss"] for record in read_metrics(path)} for path in (workdir, reference))
    return {
        "steps": len(ours),
        "all_steps": ours.keys() == theirs.keys(),
        "largest_loss_difference": max(abs(ours[step] - theirs[step]) for step in ours.keys() & theirs.keys()),
        "same_weights": fingerprint(workdir) == fingerprint(reference),
    }


def main() -> None:
    """Does the runs that were asked for; prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="alone,together,kill,stop,stop_alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    alone, together = options.out / "alone", options.out / "together"
    for name in options.only.split(","):
        begin = time.monotonic()
        rng = random.Random(f"{options.seed} {name}")
        record: dict[str, object] = {"run": name}
        if name in ("alone", "together"):
            make = train_command if name == "alone" else supervised
            start(make(options.shards, options.out / name, options.steps), options.out / f"{name}.log").wait()
            if name == "together":
                record |= compare(together, alone)
        else:
            make, reference = (train_command, alone) if name == "stop_alone" else (supervised, together)
            moments, runs = 0, []
            while moments < options.moments:
                workdir = options.out / f"{name}{len(runs)}"
                command = make(options.shards, workdir, options.steps)
                left = options.moments - moments
                if name == "kill":
                    after = kill_at_random(command, workdir, left, rng)
                else:
                    after = stop_at_random(command, workdir, options.steps, left, rng)
                moments += len(after)
                runs.append({"after_steps": after, **compare(workdir, reference)})
            record |= {"moments": moments, "runs": runs}
        print(json.dumps({**record, "seconds": round(time.monotonic() - begin, 1)}), flush=True)


if __name__ == "__main__":
    main()
