"""`python -m nextflow_jax.evaluate`: measures a model or tokenizer on an experiment's pictures, writes metrics.json."""

import argparse
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

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
from nextflow_jax.evals.tokenizer_parts import Size
from nextflow_jax.evals.tokenizer_suite import run_tokenizer_suite
from nextflow_jax.export import codec_of_run
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import DecoderExperiment, TokenizerExperiment, build_experiment
from nextflow_jax.vision.codec import VisionTokenizerCodec

DESCRIPTION = """\
With a decoder experiment: measures a bundle on its pictures: reconstruction, text to image, captions, edits, held-out
combinations. With a tokenizer experiment: measures the vision tokenizer of a bundle or of a run: PSNR, SSIM, codebook
usage and perplexity, and, when config.evaluation names the published weights, LPIPS and rFID, of each split and size.

Writes metrics.json and, for the report, evaluation/ with every answer. Parts that are there already, made from the same
weights, pictures and settings, are not run again."""


def main(arguments: Sequence[str]) -> None:
    """Checks everything, then evaluates; see --help."""
    parser = command.command_parser(
        "evaluate",
        DESCRIPTION,
        example="--bundle runs/quickstart/bundle --config experiments/openmoji/quickstart.py --out runs/quickstart",
    )
    command.add_config_flag(parser)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--bundle", metavar="DIR", type=command.folder, help="what export wrote")
    subject.add_argument(
        "--workdir", metavar="DIR", type=command.folder, help="a tokenizer run; its newest checkpoint is measured"
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=command.folder, help="folder for the results")
    options, overrides = command.parse(parser, arguments)
    experiment = build_experiment(load_experiment(options.config, overrides))
    if isinstance(experiment, DecoderExperiment):
        _evaluate_decoder(options, experiment)
    elif isinstance(experiment, TokenizerExperiment):
        _evaluate_tokenizer(options, experiment)
    else:
        raise UserError(
            f"--config {options.config}: config.kind is {experiment.kind!r}; evaluation is for decoders and tokenizers"
        )
    print(f"wrote {options.out / METRICS_FILE}")


def _evaluate_decoder(options: argparse.Namespace, experiment: DecoderExperiment) -> None:
    preflight(experiment.evaluation, "config.evaluation")
    if options.bundle is None:
        raise UserError(
            f"--workdir {options.workdir}: a decoder is measured as a bundle; make one with "
            "`python -m nextflow_jax.export` and give it as --bundle"
        )
    origin = {"bundle": bundle_fingerprint(options.bundle)}
    compile_cache.enable()
    pictures = open_pictures(experiment.pictures)
    run_suite(
        lambda: load_subject(options.bundle, pictures, experiment.evaluation),
        origin,
        pictures,
        experiment.evaluation,
        options.out,
        say=_say,
    )


def _evaluate_tokenizer(options: argparse.Namespace, experiment: TokenizerExperiment) -> None:
    preflight(experiment.evaluation, "config.evaluation")
    compile_cache.enable()
    codec, origin = load_tokenizer(options, experiment.evaluation.batch_size)
    pictures = open_pictures(experiment.pictures)
    run_tokenizer_suite(
        codec, origin, pictures, evaluation_sizes(experiment), experiment.evaluation, options.out, say=_say
    )


def load_tokenizer(options: argparse.Namespace, chunk: int) -> tuple[VisionTokenizerCodec, Mapping[str, Any]]:
    """The tokenizer of --bundle or --workdir, in chunks of `chunk` pictures; and where it comes from.

    Raises:
      UserError: no bundle or run there, a broken one, or a run of another kind.
    """
    if options.bundle is not None:
        bundle_fingerprint(options.bundle)
        bundle = load_bundle(options.bundle)
        codec, origin = bundle.codec, dict(bundle.origin)
    else:
        restored = restore_variables(options.workdir)
        codec = codec_of_run(restored)
        origin = {"name": restored.config["name"], "step": restored.meta["step"]}
    return VisionTokenizerCodec(codec.config, codec.variables, chunk=chunk), {"origin": origin}


def evaluation_sizes(experiment: TokenizerExperiment) -> tuple[Size, ...]:
    """The sizes that the evaluation names; else those that training shows."""
    trained = experiment.model.family.sizes if experiment.buckets else (experiment.pictures.size,)
    return experiment.evaluation.sizes or trained


def _say(line: str) -> None:
    print(line, flush=True)


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
