"""`python -m nextflow_jax.evaluate`: measures a bundle on an experiment's pictures and writes metrics.json."""

import hashlib
import pathlib
from collections.abc import Sequence

from nextflow_jax import command, compile_cache
from nextflow_jax.bundle import DESCRIPTION_FILE, load_bundle
from nextflow_jax.config import load_experiment, preflight
from nextflow_jax.data.pictures import PictureSet, open_pictures
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.evals.answers import Answers
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.evals.outcome import METRICS_FILE
from nextflow_jax.evals.parts import Subject
from nextflow_jax.evals.pool import make_pool
from nextflow_jax.evals.suite import run_suite
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.training.experiment import DecoderExperiment, build_experiment

DESCRIPTION = """\
Measures a bundle on the pictures of a decoder experiment: reconstruction, text to image, captions, edits, held-out
combinations. Writes metrics.json and, for the report, evaluation/ with every answer. Parts that are there already, made
from the same bundle, pictures and settings, are not run again."""


def main(arguments: Sequence[str]) -> None:
    """Checks everything, then evaluates; see --help."""
    parser = command.command_parser(
        "evaluate",
        DESCRIPTION,
        example="--bundle runs/quickstart/bundle --config experiments/openmoji/quickstart.py --out runs/quickstart",
    )
    command.add_config_flag(parser)
    parser.add_argument("--bundle", required=True, metavar="DIR", type=pathlib.Path, help="what export wrote")
    parser.add_argument("--out", required=True, metavar="DIR", type=pathlib.Path, help="folder for the results")
    options, overrides = command.parse(parser, arguments)
    experiment = build_experiment(load_experiment(options.config, overrides))
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(f"--config {options.config}: config.kind is {experiment.kind!r}; evaluation is for decoders")
    preflight(experiment.evaluation, "config.evaluation")
    origin = {"bundle": bundle_fingerprint(options.bundle)}
    compile_cache.enable()
    pictures = open_pictures(experiment.pictures)
    run_suite(
        lambda: load_subject(options.bundle, pictures, experiment.evaluation),
        origin,
        pictures,
        experiment.evaluation,
        options.out,
        say=lambda line: print(line, flush=True),
    )
    print(f"wrote {options.out / METRICS_FILE}")


def load_subject(bundle_path: pathlib.Path, pictures: PictureSet, config: EvaluationConfig) -> Subject:
    """The bundle, its sampler and the reconstructions of all pictures.

    Raises:
      UserError: no bundle, a broken one, one without a decoder, or one for other picture sizes.
    """
    bundle = load_bundle(bundle_path)
    bundle.codec.family.schedule(pictures.config.size)
    answers = Answers(
        Sampler(bundle, max_batch=config.batch_size),
        pictures,
        config,
        progress=lambda what, done, total: print(f"  {what}: {done} of {total}", flush=True),
    )
    return Subject(pictures, make_pool(pictures, bundle.codec), answers, len(bundle.codec.codebook), config)


def bundle_fingerprint(path: pathlib.Path) -> str:
    """SHA-256 of the bundle's description, which holds the fingerprints of all its contents.

    Raises:
      UserError: no bundle there.
    """
    file = path / DESCRIPTION_FILE
    if not file.is_file():
        raise UserError(f"--bundle {path}: no {DESCRIPTION_FILE} there; `python -m nextflow_jax.export` makes a bundle")
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    run_entry_point(main)
