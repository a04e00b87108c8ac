"""Runs the tokenizer's ablations and prints their table: teachers, tokenizers, then decoders on two of them, by seed.

    python experiments/ablations/run.py --out runs/ablations                                    # all, seeds 0 1 2
    python experiments/ablations/run.py --out runs/ablations --data photographs --variants dual single --seeds 0
    python experiments/ablations/run.py --out runs/ablations --table                            # only the table
    python experiments/ablations/run.py --out runs/ablations --dry-run                          # only the commands

Folders: OUT/DATA/teacher, OUT/DATA/seed_N/VARIANT (a tokenizer's run, its figures and its seconds) and
OUT/DATA/seed_N/decoder_VARIANT (shards, run and vision_loss.json). What is finished is skipped, what was interrupted
goes on. The table, means and standard deviations over the seeds there are, is also OUT/table.md.

Cost: about 100 s a tokenizer and 150 s a decoder on two idle CPU cores: 1.3 hours for all, without the teachers'
2 x 2 minutes and OpenMoji's drawing.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = "experiments/ablations/tokenizer.py"
CODEBOOKS = "experiments/ablations/codebooks.py"

DATA = ("openmoji", "photographs")
VARIANTS = {
    "dual": "dual codebook (= scale drop 10%, = both stages at once)",
    "single": "single codebook (VQGAN)",
    "drop0": "scale drop 0%",
    "drop50": "scale drop 50%",
    "staged": "in stages: pixel branch, then joint",
}
"""Rows of the table; `staged` brings its first stage along."""
DECODERS = ("dual", "single")
"""Tokenizers that a decoder is trained on."""
TOKENIZER_FIGURES = {
    "psnr_val": "PSNR, validation",
    "ssim_val": "SSIM, validation",
    "psnr_train": "PSNR, train",
    "ssim_train": "SSIM, train",
    "codebook_usage": "codebook usage",
}
"""Key in metrics.json -> heading."""
SECONDS = "seconds.json"


class Job(NamedTuple):
    """One command, and the file or folder that stands there when it is finished."""

    command: tuple[str, ...]
    result: pathlib.Path
    to_file: bool = False
    """Whether the result is what the command prints."""


def main(arguments: Sequence[str]) -> int:
    """Runs what is not finished, then prints the table; returns the exit status."""
    options = _parse(arguments)
    for job in [] if options.table else jobs(options):
        if job.result.exists():
            continue
        if options.dry_run:
            print(shlex.join(job.command))
        elif not run(job):
            print(f"not finished: {shlex.join(job.command)}; run this again to continue", file=sys.stderr)
            return 1
    if not options.dry_run:
        table = make_table(options.out)
        (options.out / "table.md").write_text(table, encoding="utf-8")
        print(table)
    return 0


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All commands in an order in which each finds what it needs."""
    for data in options.data:
        teacher = options.out / data / "teacher"
        yield _training(options, f"{TOKENIZER}:teacher,{data}", teacher)
        for seed in options.seeds:
            folder = options.out / data / f"seed_{seed}"
            for variant in options.variants:
                yield from _tokenizer_jobs(options, data, seed, variant, folder, teacher)
            for variant in DECODERS if not options.tokenizers_only else ():
                if variant in options.variants:
                    yield from _decoder_jobs(options, data, seed, variant, folder)


def _tokenizer_jobs(
    options: argparse.Namespace, data: str, seed: int, variant: str, folder: pathlib.Path, teacher: pathlib.Path
) -> Iterator[Job]:
    config, extra = f"{TOKENIZER}:{variant},{data}", [f"--config.seed={seed}"]
    if variant != "single":
        extra.append(f"--config.teacher={teacher}")
    if variant == "staged":
        first = folder / "staged_pixel"
        yield _training(options, f"{TOKENIZER}:staged_pixel,{data}", first, f"--config.seed={seed}")
        extra.append(f"--config.init_from.workdir={first}")
    yield _training(options, config, folder / variant, *extra)
    evaluate = ("--config", _variant(options, config), "--workdir", folder / variant, "--out", folder / variant)
    yield Job(_command("evaluate", *evaluate), folder / variant / "metrics.json")


def _decoder_jobs(
    options: argparse.Namespace, data: str, seed: int, variant: str, folder: pathlib.Path
) -> Iterator[Job]:
    config, out = f"{CODEBOOKS}:{variant},{data}", folder / f"decoder_{variant}"
    shards, seeded = f"--config.pipeline.shards={out / 'shards'}", f"--config.seed={seed}"
    extract = ("--config", _variant(options, config), "--tokenizer", folder / variant, "--out", out / "shards", seeded)
    yield Job(_command("extract", *extract), out / "shards" / "manifest.json")
    yield _training(options, config, out / "decoder", shards, seeded)
    measure = (sys.executable, "-m", "experiments.ablations.vision_loss", "--workdir", str(out / "decoder"))
    yield Job(measure, out / "vision_loss.json", to_file=True)


def _training(options: argparse.Namespace, config: str, workdir: pathlib.Path, *extra: str) -> Job:
    command = _command("train", "--config", _variant(options, config), "--workdir", workdir, *extra)
    return Job(command, workdir / "checkpoints" / str(_steps(options, config)))


def _steps(options: argparse.Namespace, config: str) -> int:
    from nextflow_jax.config import load_experiment

    return load_experiment(str(ROOT / _variant(options, config))).train.steps


def _variant(options: argparse.Namespace, config: str) -> str:
    return f"{config},smoke" if options.smoke else config


def _command(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", f"nextflow_jax.{name}", *map(str, arguments))


def run(job: Job) -> bool:
    """Runs a command and adds its seconds to the folder's; whether it left its result."""
    print(f"== {shlex.join(job.command)}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    done = subprocess.run(job.command, cwd=ROOT, stdout=subprocess.PIPE if job.to_file else None, text=True)
    if "--workdir" in job.command and not job.to_file:
        workdir = pathlib.Path(job.command[job.command.index("--workdir") + 1])
        _add_seconds(workdir / SECONDS, job.command[2], time.perf_counter() - begin)
    if done.returncode == 0 and job.to_file:
        job.result.write_text(done.stdout, encoding="utf-8")
    return done.returncode == 0 and job.result.exists()


def _add_seconds(path: pathlib.Path, name: str, seconds: float) -> None:
    if path.parent.is_dir():
        known = _read(path)
        path.write_text(json.dumps({**known, name: known.get(name, 0.0) + seconds}), encoding="utf-8")


def make_table(out: pathlib.Path) -> str:
    """The tokenizers' and the decoders' figures as Markdown: mean ± deviation over seeds, with how many there are."""
    heads = ["pictures", "tokenizer", "seeds", *TOKENIZER_FIGURES.values(), "training, s"]
    rows = []
    for data in DATA:
        for variant, label in VARIANTS.items():
            runs = [_read(path / "metrics.json") for path in _seeds(out, data, variant, "metrics.json")]
            if runs:
                figures = [_mean([run[key] for run in runs if key in run]) for key in TOKENIZER_FIGURES]
                rows.append([data, label, str(len(runs)), *figures, _mean(_training_seconds(out, data, variant), 0)])
    parts = [_markdown(heads, rows)]
    rows = []
    for data in DATA:
        for variant in DECODERS:
            runs = [_read(path / "vision_loss.json") for path in _seeds(out, data, f"decoder_{variant}")]
            if runs:
                ours = [_mean([run[key] for run in runs], 3) for key in ("cross_entropy/vision", "accuracy/vision")]
                train = _mean([run["train"]["cross_entropy/vision"] for run in runs], 3)
                rows.append([data, VARIANTS[variant], str(len(runs)), *ours, train])
    if rows:
        heads = ["pictures", "decoder on codes of", "seeds", "vision loss, validation", "accuracy, validation"]
        parts.append(_markdown([*heads, "vision loss, train"], rows))
    return "\n\n".join(parts) + "\n"


def _training_seconds(out: pathlib.Path, data: str, variant: str) -> list[float]:
    """Wall-clock seconds of training, those of the stage before included."""
    found = []
    for folder in _seeds(out, data, variant, "metrics.json"):
        stages = [folder, folder.parent / "staged_pixel"] if variant == "staged" else [folder]
        found.append(sum(_read(stage / SECONDS).get("nextflow_jax.train", 0.0) for stage in stages))
    return found


def _seeds(out: pathlib.Path, data: str, name: str, wanted: str = "vision_loss.json") -> list[pathlib.Path]:
    return [path.parent for path in sorted((out / data).glob(f"seed_*/{name}/{wanted}"))]


def _read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _mean(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokenizers-only", action="store_true", help="train no decoders")
    parser.add_argument("--smoke", action="store_true", help="toy lengths, to see every command run")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are left")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
