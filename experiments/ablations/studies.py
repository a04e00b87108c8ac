"""Runs one of the decoder's ablations, every variant with every seed, and prints its table.

    python -m experiments.ablations.studies heads --out runs/studies                  # three seeds
    python -m experiments.ablations.studies heads --out runs/studies --seeds 0        # one
    python -m experiments.ablations.studies heads --out runs/studies --table          # only the table
    python -m experiments.ablations.studies heads --out runs/studies --dry-run        # only the commands

Studies: heads, self_correction, scale_reweight, text_share; each is an experiment file beside this one. Their
tokenizers are trained once for all (OUT/TOKENIZER), shards once a setting of the extraction (OUT/STUDY/shards_NAME);
seeds are those of the decoder (OUT/STUDY/seed_N/VARIANT). What is finished is skipped, what was interrupted goes on.
The table, means and standard deviations over the seeds there are, is also OUT/STUDY/table.md.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from experiments.ablations.jobs import Job, command, markdown, mean, read, run_all, training

FOLDER = "experiments/ablations"
LOSSES, METRICS = "losses.json", "metrics.json"
DRAWN = {"t2i_retrieval_at_1": "retrieval@1", "t2i_retrieval_at_1_originals": "among originals"}
VISION = {"cross_entropy/vision": "vision loss"}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and its teacher, as experiments."""

    teacher: str
    tokenizer: str


@dataclasses.dataclass(frozen=True)
class Study:
    """One ablation: an experiment file, what its variants share, and the figures of its table."""

    tokenizer: str
    """A key of TOKENIZERS."""
    shards: Mapping[str, str]
    """Variant -> name of its shards; variants that share them have equal settings of the extraction."""
    losses: Mapping[str, str]
    """Key -> heading, of training and validation losses."""
    metrics: Mapping[str, str]
    """Key -> heading, of the evaluation."""


TOKENIZERS = {
    "quickstart": Tokenizer(
        "experiments/openmoji/quickstart.py:contrastive", "experiments/openmoji/quickstart.py:tokenizer"
    ),
    "finer": Tokenizer(f"{FOLDER}/tokenizer.py:teacher", f"{FOLDER}/tokenizer.py:dual"),
}

STUDIES = {
    "heads": Study(
        "quickstart",
        {"shared": "all", "separate": "all"},
        {**VISION, "cross_entropy/text": "text loss"},
        {**DRAWN, "caption_exact_match": "captions exact"},
    ),
    "self_correction": Study(
        "quickstart",
        {
            "residual": "plain",
            "residual_corrected": "corrected",
            "accumulated": "plain",
            "accumulated_corrected": "corrected",
        },
        VISION,
        DRAWN,
    ),
    "scale_reweight": Study(
        "finer",
        {"plain": "all", "reweighted": "all"},
        {**VISION, **{f"cross_entropy/scale_{scale:02d}": f"scale {scale}" for scale in range(1, 7)}},
        DRAWN,
    ),
    "text_share": Study(
        "quickstart",
        {"text_0": "all", "text_25": "all"},
        {**VISION, "cross_entropy/text": "text loss"},
        DRAWN,
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Runs what is not finished, then prints the table; returns the exit status."""
    options = _parse(arguments)
    folder = options.out / options.study
    if not run_all([] if options.table else jobs(options), options.dry_run):
        return 1
    if not options.dry_run:
        table = make_table(STUDIES[options.study], folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(table, encoding="utf-8")
        print(table)
    return 0


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All commands in an order in which each finds what it needs."""
    study, folder = STUDIES[options.study], options.out / options.study
    made_by, tokenizer = TOKENIZERS[study.tokenizer], options.out / study.tokenizer / "tokenizer"
    teacher = options.out / study.tokenizer / "teacher"
    yield training(_spec(options, made_by.teacher), teacher)
    yield training(_spec(options, made_by.tokenizer), tokenizer, f"--config.teacher={teacher}")
    for seed in options.seeds:
        for variant, shards_name in study.shards.items():
            config = _spec(options, f"{FOLDER}/{options.study}.py:{variant}")
            shards, run = folder / f"shards_{shards_name}", folder / f"seed_{seed}" / variant
            extract = command("extract", "--config", config, "--tokenizer", tokenizer, "--out", shards)
            yield Job(extract, shards / "manifest.json")
            yield training(config, run, f"--config.pipeline.shards={shards}", f"--config.seed={seed}")
            measure = (sys.executable, "-m", "experiments.ablations.decoder_losses", "--workdir", str(run))
            yield Job(measure, run / LOSSES, to_file=True)
            yield Job(command("export", "--workdir", run, "--out", run / "bundle"), run / "bundle" / "bundle.json")
            evaluate = command("evaluate", "--bundle", run / "bundle", "--config", config, "--out", run)
            yield Job(evaluate, run / METRICS)


def make_table(study: Study, folder: pathlib.Path) -> str:
    """The figures as Markdown: mean ± deviation over seeds, with how many there are."""
    heads = ["variant", "seeds"]
    heads += [f"{heading}, {split}" for split in ("train", "validation") for heading in study.losses.values()]
    heads += list(study.metrics.values())
    rows = []
    for variant in study.shards:
        runs = [path.parent for path in sorted(folder.glob(f"seed_*/{variant}/{METRICS}"))]
        losses, metrics = ([read(run / name) for run in runs] for name in (LOSSES, METRICS))
        if runs:
            train = [mean([item["train"][key] for item in losses], 3) for key in study.losses]
            validation = [mean([item[key] for item in losses], 3) for key in study.losses]
            figures = [mean([item[key] for item in metrics], 3) for key in study.metrics]
            rows.append([variant, str(len(runs)), *train, *validation, *figures])
    return markdown(heads, rows) + "\n"


def _spec(options: argparse.Namespace, config: str) -> str:
    return f"{config},smoke" if options.smoke else config


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="toy lengths, to see every command run")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are left")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
