"""Does the way from files to batches lose, repeat or change anything when processes are killed or their number changes?

Real processes on OpenMoji's files, each ended by SIGKILL at random moments and started again until it is done:

    ingest     pairs and edits in JSON Lines, filtered (sizes, captions, script, exact and near duplicates, labels), two
               workers; the command and its workers are killed together
    extract    that corpus, two draws of self-correction, shards of 64 documents
    batches    of those shards with mixture weights, task inversion, dropout and packing by compute budget; a consumer
               saves one integer after each batch (experiments/bench/batch_reader.py). Half of the kills hit it before
               its first batch (importing, opening, planning), half while batches are built and handed over, by turns
               in threads alone and with two worker processes. Only the consumer is killed: workers are to end by
               themselves.
    hosts      1, 2, 4 and 1 processes in turn, each phase from where the last one stopped, in the middle of a window
    training   nextflow_jax.train --distributed by 1, 2, 4 and 1 processes, each phase stopped by SIGTERM to one
               process, against one process that was never stopped

Ingest and extract are compared byte for byte with undisturbed runs, batches by a hash of every row. Documents are known
by their tokens, which are hashed once more from the records alone: with neither mixture nor dropout, all must have been
read equally often, or once more, at the end of every planned window.

Command: `python -m experiments.bench.data_resume --out /tmp/data_resume`; parts one by one with --parts
Cost: about two minutes for ingest, three and a half for the batches, on two cores of their own.
Result (jax 0.10.2, Python 3.11, Linux):

    ingest     10 kills, all while parts were being written: 59 files as undisturbed, byte for byte
    extract    10 kills, all while shards were being written: 42 files as undisturbed, byte for byte
    batches    52 kills in two runs of 26 (--seed 0, 1), 19 of them before the first batch: 1301 batches as undisturbed,
               4 of them read once more, none missing; no worker outlived its consumer, nothing stayed in shared memory
    hosts      26, 25, 28 and 41 steps, the same on each host; all of 120 batches are those that one process reads.
               Plain: 3544 documents read of 3544 planned, 1.27 epochs of 2786; at the end of every window each had been
               read as often as any other, or once more
    training   stopped after steps 10, 22 and 27 by 1, 2 and 4 processes: 40 steps, losses at most 2.6e-7 from those of
               one process (the shards of a smoke quickstart stood in for those of the extract part)
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.core import meta

from experiments.bench import batch_reader
from experiments.data import openmoji_files
from nextflow_jax.bundle import save_bundle
from nextflow_jax.errors import run_entry_point
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

PARTS = ("ingest", "extract", "batches", "hosts", "training")
PHASES = ((1, 26), (2, 51), (4, 79), (1, 120))
"""(processes, batch before which they stop); none of them at the end of a window of four."""
INGEST_SETTINGS = (
    "--config.workers=2", "--config.sources.0.unit_bytes=8000", "--config.sources.1.unit_bytes=8000",
    "--config.filters.pictures.min_side=32", "--config.filters.texts.scripts=('Latin',)",
    "--config.filters.duplicates.near_distance=0", "--config.filters.balance.max_times_median=4.0",
)  # fmt: skip
ENDS_WITHIN = 10.0
"""Seconds that workers of a killed process may live on."""


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object a part."""
    parser = argparse.ArgumentParser("python -m experiments.bench.data_resume", description=__doc__)
    parser.add_argument("--out", default="/tmp/data_resume", type=pathlib.Path, help="folder to work in")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="each needs those before it")
    parser.add_argument("--kills", type=int, default=50, help="of the consumer of batches (%(default)s)")
    parser.add_argument("--command_kills", type=int, default=10, help="of ingest and of extract (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    flags = parser.parse_args(arguments)
    rng, out, shards = random.Random(flags.seed), flags.out, flags.out / "shards"
    if "ingest" in flags.parts:
        openmoji_files.main(["--out", str(out / "files"), "--size", "32", "--subset", "quickstart"])
        compare_killed("ingest", ingest_command(out), out / "corpus", flags.command_kills, rng)
    if "extract" in flags.parts:
        write_tokenizer(out / "tokenizer")
        compare_killed("extract", extract_command(out), shards, flags.command_kills, rng)
    if "batches" in flags.parts:
        kill_consumers(shards, emptied(out / "batches"), flags.kills, rng)
    if "hosts" in flags.parts:
        for plain in (False, True):
            switch_hosts(shards, emptied(out / "hosts"), plain)
    if "training" in flags.parts:
        train_by_turns(shards, emptied(out / "training"))


def ingest_command(out: pathlib.Path) -> list[str]:
    """Ingest of the files in `out`."""
    paths = [f"--config.sources.{i}.paths=('{out}/files/{name}.jsonl',)" for i, name in enumerate(("pairs", "edits"))]
    return [*command("nextflow_jax.data.ingest", "experiments/data/openmoji.py:jsonl"), *INGEST_SETTINGS, *paths]


def extract_command(out: pathlib.Path) -> list[str]:
    """Extraction of the corpus in `out`."""
    return [
        *command("nextflow_jax.extract", "experiments/openmoji/quickstart.py:decoder"),
        f"--tokenizer={out / 'tokenizer'}",
        "--config.pictures.name=corpus",
        f"--config.pictures.root={out / 'corpus'}",
        "--config.extraction.draws=2",
        "--config.extraction.documents_per_shard=64",
    ]


def emptied(folder: pathlib.Path) -> pathlib.Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def command(module: str, config: str) -> list[str]:
    """The beginning of a command line."""
    return [sys.executable, "-m", module, "--config", config]


def report(part: str, **found: object) -> None:
    """One line."""
    print(json.dumps({"part": part, **found}), flush=True)


def write_tokenizer(out: pathlib.Path) -> None:
    """A vision tokenizer of random weights: what its codes say does not matter here."""
    config = VisionTokenizerConfig()
    pictures = jnp.zeros((1, *config.family.sizes[0], 3))
    initialise = jax.jit(lambda key: meta.unbox(VisionTokenizer(config).init(key, pictures, train=False)))
    variables = initialise(jax.random.key(0))
    save_bundle(out, vision_tokenizer=VisionTokenizerCodec(config, variables), origin={})


def compare_killed(part: str, run: list[str], out: pathlib.Path, kills: int, rng: random.Random) -> None:
    """Kills a command `kills` times while it fills a folder, lets it end, and compares with a run left alone.

    A kill waits for some more finished parts, drawn so that all kills are spread over the whole way, and a little
    longer. When the command ends first, the folder is emptied and it begins anew.
    """
    begin = time.monotonic()
    subprocess.run([*run, "--out", str(emptied(out))], check=True, capture_output=True)
    ours = contents(out)
    parts = sum(map(is_part, ours))
    pause = (time.monotonic() - begin) / parts
    other, done, begun_anew, unfinished = emptied(out.with_name(f"{out.name}_killed")), 0, 0, 0
    while done < kills:
        wanted = sum(map(is_part, listed(other))) + rng.randrange(2 * parts // kills + 1)
        process = start([*run, "--out", str(other)])
        while process.poll() is None and sum(map(is_part, listed(other))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, pause))
        if process.poll() is not None:
            shutil.rmtree(other)
            begun_anew += 1
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        unfinished += any(name.startswith(".partial-") for name in listed(other))
        done += 1
    subprocess.run([*run, "--out", str(other)], check=True, capture_output=True)
    theirs = contents(other)
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    report(part, kills=kills, with_half_files=unfinished, begun_anew=begun_anew, files=len(ours), differing=differing)


def is_part(name: str) -> bool:
    """Whether a file is a finished part of a corpus or of shards."""
    return name.endswith(".array_record") and not name.startswith(".")


def listed(folder: pathlib.Path) -> list[str]:
    """Names in a folder that may not be there."""
    return os.listdir(folder) if folder.is_dir() else []


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(run: list[str], **environment: str) -> subprocess.Popen:
    """A process that leads a group of its own, so that it can be killed with its workers."""
    return subprocess.Popen(
        run,
        env={**os.environ, **environment},
        process_group=0,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def reader(shards: pathlib.Path, folder: pathlib.Path, *flags: object) -> list[str]:
    """The command line of a consumer."""
    return [sys.executable, "-m", "experiments.bench.batch_reader", str(shards), str(folder), *map(str, flags)]


def kill_consumers(shards: pathlib.Path, folder: pathlib.Path, kills: int, rng: random.Random) -> None:
    """Kills consumers, and compares all that they saw with what one sees that is left alone."""
    begin = time.monotonic()
    subprocess.run(reader(shards, folder / "startup", "--stop", 1, "--workers", 2), check=True, capture_output=True)
    startup = time.monotonic() - begin
    memory_before, outlived, idle = shared_memory(), 0, 0
    for kill in range(kills):
        at = batch_reader.read_position(folder / "killed", 0)
        workers = ("--workers", 2) if kill % 2 else ("--threads", 3)
        process = start(reader(shards, folder / "killed", "--pause", 0.005, *workers))
        if kill % 4 < 2:
            time.sleep(rng.uniform(0.1, 1.0) * startup)
        else:
            while batch_reader.read_position(folder / "killed", 0) == at and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        outlived += not ends(process.pid)
        idle += batch_reader.read_position(folder / "killed", 0) == at
    stop = batch_reader.read_position(folder / "killed", 0) + 8
    subprocess.run(reader(shards, folder / "killed", "--stop", stop), check=True, capture_output=True)
    alone = reader(shards, folder / "alone", "--stop", stop, "--threads", 0)
    subprocess.run(alone, check=True, capture_output=True)
    expected, seen = batch_reader.read_seen(folder / "alone"), batch_reader.read_seen(folder / "killed")
    differing = [n for n, batches in seen.items() for batch in batches if batch != expected[n][0]]
    report(
        "batches",
        kills=kills,
        before_a_batch=idle,
        batches=stop,
        read_again=sum(len(batches) - 1 for batches in seen.values()),
        missing=len(set(range(stop)) - set(seen)),
        differing=len(differing),
        groups_with_workers_left=outlived,
        shared_memory_left=shared_memory() - memory_before,
    )


def ends(group: int) -> bool:
    """Whether all processes of a group end in time; those that do not are killed."""
    deadline = time.monotonic() + ENDS_WITHIN
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def shared_memory() -> int:
    """Bytes of files in shared memory."""
    folder = pathlib.Path("/dev/shm")
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0


def switch_hosts(shards: pathlib.Path, folder: pathlib.Path, plain: bool) -> None:
    """Reads with other numbers of processes in turn and compares with one process."""
    stop, flags, begin = PHASES[-1][1], ["--plain"] if plain else [], 0
    subprocess.run(reader(shards, folder / "alone", "--stop", stop, *flags), check=True, capture_output=True)
    expected = batch_reader.read_seen(folder / "alone")
    union: dict[int, list[list]] = {}
    steps = []
    for phase, (parts, end) in enumerate(PHASES):
        places = [folder / f"{phase}-{part}" for part in range(parts)]
        given = [("--start", begin, "--stop", end, "--part", part, "--parts", parts) for part in range(parts)]
        hosts = [start(reader(shards, place, *one, *flags)) for place, one in zip(places, given)]
        said = [host.communicate()[1] for host in hosts]
        if any(host.returncode for host in hosts):
            raise SystemExit("".join(said))
        seen = [batch_reader.read_seen(place) for place in places]
        steps.append([len(one) for one in seen])
        for n in range(begin, end):
            union[n] = [list(itertools.chain(*kinds)) for kinds in zip(*(one[n][0] for one in seen))]
        begin = end
    differing = sum(union[n] != expected[n][0] for n in range(stop))
    found = {"phases": PHASES, "steps": steps, "differing": differing, "missing": stop - len(union)}
    report("hosts", plain=plain, **found, **(batch_reader.count_documents(shards, union) if plain else {}))


def train_by_turns(shards: pathlib.Path, folder: pathlib.Path) -> None:
    """Trains with 1, 2, 4 and 1 processes in turn; compares the losses with those of one process left alone."""
    run = [*command("nextflow_jax.train", "experiments/openmoji/quickstart.py:decoder,smoke"), "--distributed"]
    run += [f"--config.pipeline.shards={shards}", "--config.train.batch_size=8", "--config.train.steps=40"]
    run += ["--config.train.log_every=1", "--config.train.checkpoint_every=100", "--config.train.tensorboard=False"]
    run += ["--config.pipeline.mixture.weights=(('text_to_image', 0.6), ('edit', 0.4))"]
    run += ["--config.pipeline.packing=compute_budget", "--config.pipeline.task_inversion=0.2"]
    stops = []
    for parts, step in ((1, 8), (2, 16), (4, 24), (1, 0)):
        stops.append(train_together([*run, "--workdir", str(folder / "turns")], parts, step))
    train_together([*run, "--workdir", str(folder / "alone")], 1, 0)
    turns, alone = (read_losses(folder / name) for name in ("turns", "alone"))
    apart = max(abs(a - b) for a, b in zip(turns.values(), alone.values()))
    report("training", stopped=stops, steps=len(turns), same_steps=turns.keys() == alone.keys(), loss_apart=apart)


def train_together(run: list[str], parts: int, stop_at: int) -> int:
    """Trains with so many processes; the last one gets SIGTERM at step `stop_at` (0: none). Returns where it ended."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    hosts = []
    for part in range(parts):
        names = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(parts), "PROCESS_ID": str(part)}
        hosts.append(start(run, **{f"JAX_{name}": value for name, value in names.items()}))
    said = []
    for line in hosts[0].stderr:
        said.append(line)
        if stop_at and f"step {stop_at}/" in line:
            hosts[-1].send_signal(signal.SIGTERM)
    rest = [host.communicate()[1] for host in hosts]
    if any(host.returncode for host in hosts):
        raise SystemExit("".join([*said, *rest]))
    workdir = pathlib.Path(run[run.index("--workdir") + 1])
    return max(read_losses(workdir))


def read_losses(workdir: pathlib.Path) -> dict[int, float]:
    """The loss of every step."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}


if __name__ == "__main__":
    run_entry_point(main)
