"""Runs the tokenizer's ablations and prints their table: teachers, tokenizers, then decoders on two of them, by seed.

    python -m experiments.ablations.run --out runs/ablations                                    # all, seeds 0 1 2
    python -m experiments.ablations.run --out runs/ablations --data photographs --variants dual single --seeds 0
    python -m experiments.ablations.run --out runs/ablations --table                            # only the table
    python -m experiments.ablations.run --out runs/ablations --dry-run                          # only the commands

Folders: OUT/DATA/teacher, OUT/DATA/seed_N/VARIANT (a tokenizer's run, its figures and its seconds) and
OUT/DATA/seed_N/decoder_VARIANT (shards, run and losses.json). What is finished is skipped, what was interrupted
goes on. The table, means and standard deviations over the seeds there are, is also OUT/table.md.

Cost: about 100 s a tokenizer and 150 s a decoder on two idle CPU cores: 1.3 hours for all, without the teachers'
2 x 2 minutes and OpenMoji's drawing.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

from experiments.ablations.jobs import SECONDS, Job, command, markdown, mean, read, run_all, training

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


def main(arguments: Sequence[str]) -> int:
    """Runs what is not finished, then prints the table; returns the exit status."""
    options = _parse(arguments)
    if not run_all([] if options.table else jobs(options), options.dry_run):
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
    yield Job(command("evaluate", *evaluate), folder / variant / "metrics.json")


def _decoder_jobs(
    options: argparse.Namespace, data: str, seed: int, variant: str, folder: pathlib.Path
) -> Iterator[Job]:
    config, out = f"{CODEBOOKS}:{variant},{data}", folder / f"decoder_{variant}"
    shards, seeded = f"--config.pipeline.shards={out / 'shards'}", f"--config.seed={seed}"
    extract = ("--config", _variant(options, config), "--tokenizer", folder / variant, "--out", out / "shards", seeded)
    yield Job(command("extract", *extract), out / "shards" / "manifest.json")
    yield _training(options, config, out / "decoder", shards, seeded)
    measure = (sys.executable, "-m", "experiments.ablations.decoder_losses", "--workdir", str(out / "decoder"))
    yield Job(measure, out / "losses.json", to_file=True)


def _training(options: argparse.Namespace, config: str, workdir: pathlib.Path, *extra: str) -> Job:
    return training(_variant(options, config), workdir, *extra)


def _variant(options: argparse.Namespace, config: str) -> str:
    return f"{config},smoke" if options.smoke else config


def make_table(out: pathlib.Path) -> str:
    """The tokenizers' and the decoders' figures as Markdown: mean ± deviation over seeds, with how many there are."""
    heads = ["pictures", "tokenizer", "seeds", *TOKENIZER_FIGURES.values(), "training, s"]
    rows = []
    for data in DATA:
        for variant, label in VARIANTS.items():
            runs = [read(path / "metrics.json") for path in _seeds(out, data, variant, "metrics.json")]
            if runs:
                figures = [mean([run[key] for run in runs if key in run]) for key in TOKENIZER_FIGURES]
                rows.append([data, label, str(len(runs)), *figures, mean(_training_seconds(out, data, variant), 0)])
    parts = [markdown(heads, rows)]
    rows = []
    for data in DATA:
        for variant in DECODERS:
            runs = [read(path / "losses.json") for path in _seeds(out, data, f"decoder_{variant}")]
            if runs:
                ours = [mean([run[key] for run in runs], 3) for key in ("cross_entropy/vision", "accuracy/vision")]
                train = mean([run["train"]["cross_entropy/vision"] for run in runs], 3)
                rows.append([data, VARIANTS[variant], str(len(runs)), *ours, train])
    if rows:
        heads = ["pictures", "decoder on codes of", "seeds", "vision loss, validation", "accuracy, validation"]
        parts.append(markdown([*heads, "vision loss, train"], rows))
    return "\n\n".join(parts) + "\n"


def _training_seconds(out: pathlib.Path, data: str, variant: str) -> list[float]:
    """Wall-clock seconds of training, those of the stage before included."""
    found = []
    for folder in _seeds(out, data, variant, "metrics.json"):
        stages = [folder, folder.parent / "staged_pixel"] if variant == "staged" else [folder]
        found.append(sum(read(stage / SECONDS).get("nextflow_jax.train", 0.0) for stage in stages))
    return found


def _seeds(out: pathlib.Path, data: str, name: str, wanted: str = "losses.json") -> list[pathlib.Path]:
    return [path.parent for path in sorted((out / data).glob(f"seed_*/{name}/{wanted}"))]


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
    sys.exit(main(sys.argv[1:]))
