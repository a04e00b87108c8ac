"""`python -m nextflow_jax.export`: a run as a bundle, which samples without training code, or a Hugging Face folder."""

import pathlib
from collections.abc import Sequence
from typing import Any

from nextflow_jax import command
from nextflow_jax.bundle import Bundle, DecoderPart, load_bundle, save_bundle
from nextflow_jax.convert.hf_folder import save_folder
from nextflow_jax.convert.qwen2_5 import open_checkpoint
from nextflow_jax.data.shards import TOKENIZER_DIRECTORY
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.training.averaging import AVERAGED, average_checkpoints
from nextflow_jax.training.checkpoint import Restored
from nextflow_jax.training.experiment import DecoderExperiment, TokenizerExperiment, build_experiment
from nextflow_jax.vision.adversarial import without_players
from nextflow_jax.vision.codec import VisionTokenizerCodec

FORMATS = ("bundle", "hf")

DESCRIPTION = """\
Writes what a checkpoint of a run holds. Where the run keeps a moving average of the weights, that is what is exported.
An older export in OUT is replaced.

  bundle  of a decoder or tokenizer run, for our other commands: bundle.json, weights as safetensors, the text
          tokenizer, a README.
  hf      of a decoder run with Qwen's architecture: a Hugging Face folder, which transformers loads as a text model
          and config.init_from.weights reads back bit for bit. With --source, a folder that the weights once came from,
          it is of that one's kind, Qwen2.5-VL with its vision tower for example; else Qwen2. What only our model has
          lies in nextflow.safetensors beside the text model."""


def main(arguments: Sequence[str]) -> None:
    """Exports a run; see --help."""
    example = "--workdir runs/quickstart/decoder --out runs/quickstart/bundle"
    parser = command.command_parser("export", DESCRIPTION, example)
    parser.add_argument("--workdir", required=True, type=command.folder, metavar="DIR", help="the run's folder")
    parser.add_argument("--out", required=True, type=command.folder, metavar="DIR", help="made when it is not there")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest when not given")
    parser.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="N",
        help="the mean of the weights of it and the N - 1 before (default: 1)",
    )
    parser.add_argument("--format", default="bundle", choices=FORMATS, help="default: bundle")
    parser.add_argument("--source", metavar="DIR", help="for hf: the folder whose kind of checkpoint is written")
    options = parser.parse_args(arguments)
    if options.format == "hf":
        dtype = export_hf(options.workdir, options.out, options.step, options.source, options.average)
        print(f"{options.out}: {options.workdir} in Hugging Face layout, {dtype}")
        return
    if options.source:
        raise UserError(f"--source {options.source}: is for --format hf; leave it out")
    path = export_run(options.workdir, options.out, options.step, options.average)
    print(f"{path}: bundle of {options.workdir}")


def export_run(
    workdir: str | pathlib.Path, out: str | pathlib.Path, step: int | None = None, average: int = 1
) -> pathlib.Path:
    """Writes the bundle of a run.

    Args:
      workdir: of a decoder or tokenizer run.
      out: the bundle's folder.
      step: which checkpoint; the newest when None.
      average: the mean of the weights of so many, up to that one.

    Raises:
      UserError: no such checkpoint, a run of another kind, tokenizers that are not those the run was trained with, or
        an `out` that holds something else.
    """
    restored = average_checkpoints(workdir, average, step)
    experiment = build_experiment(restored.config, saved=True)
    if isinstance(experiment, TokenizerExperiment):
        return save_bundle(out, vision_tokenizer=codec_of_run(restored), origin=_origin(restored))
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(f"{workdir}: a run of kind {experiment.kind!r} has no bundle; give a decoder or tokenizer run")
    tokenizers = _tokenizers(workdir, restored)
    pipeline = experiment.pipeline
    return save_bundle(
        out,
        vision_tokenizer=tokenizers.codec,
        text_tokenizer=tokenizers.text_tokenizer,
        decoder=DecoderPart(
            config=experiment.model,
            variables={"params": restored.params},
            sequence=pipeline.sequence,
            last_scale_context=pipeline.last_scale_context,
            max_positions=pipeline.row_length,
        ),
        defaults=experiment.evaluation.sampling,
        origin=_origin(restored),
    )


def export_hf(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    step: int | None = None,
    source: str | pathlib.Path | None = None,
    average: int = 1,
) -> str:
    """Writes a decoder run as a Hugging Face folder; see nextflow_jax/convert/hf_folder.py.

    Args:
      workdir: of a decoder run.
      out: the folder.
      step: which checkpoint; the newest when None.
      source: a folder whose kind of checkpoint is written; None: Qwen2.
      average: the mean of the weights of so many checkpoints, up to that one.

    Returns:
      The dtype of the weights.

    Raises:
      UserError: as `export_run`; or the decoder is of another shape than Qwen2 or the source.
    """
    restored = average_checkpoints(workdir, average, step)
    experiment = build_experiment(restored.config, saved=True)
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(f"{workdir}: a run of kind {experiment.kind!r} is no language model; give a decoder run")
    return save_folder(
        out,
        experiment.model,
        restored.params,
        _tokenizers(workdir, restored).text_tokenizer,
        experiment.pipeline.row_length,
        open_checkpoint(source) if source else None,
    )


def _tokenizers(workdir: str | pathlib.Path, restored: Restored) -> Bundle:
    """Those that a decoder run was trained with, from its folder."""
    tokenizers = load_bundle(pathlib.Path(workdir) / TOKENIZER_DIRECTORY)
    trained_with = restored.meta["fingerprints"]
    for name, part in (("vision_tokenizer", tokenizers.codec), ("text_tokenizer", tokenizers.text_tokenizer)):
        if part is None or part.fingerprint != trained_with[name]:
            found = "none" if part is None else part.fingerprint[:12]
            raise UserError(
                f"{pathlib.Path(workdir) / TOKENIZER_DIRECTORY}: {name} {found}, the decoder was trained with "
                f"{trained_with[name][:12]}; restore the folder from the shards the run was trained on"
            )
    return tokenizers


def codec_of_run(restored: Restored) -> VisionTokenizerCodec:
    """The frozen vision tokenizer of a tokenizer run, without the discriminator it may have been trained against.

    Raises:
      UserError: a run of another kind.
    """
    experiment = build_experiment(restored.config, saved=True)
    if not isinstance(experiment, TokenizerExperiment):
        raise UserError(
            f"a run of kind {experiment.kind!r} holds no vision tokenizer; give a tokenizer run or a bundle"
        )
    return VisionTokenizerCodec(experiment.model, without_players({"params": restored.params, **restored.variables}))


def _origin(restored: Restored) -> dict[str, Any]:
    config, meta = restored.config, restored.meta
    averaged = {name: meta[name] for name in (AVERAGED,) if name in meta}
    origin = {"kind": config["kind"], "name": config["name"], "step": meta["step"], **averaged}
    return {**origin, "fingerprints": meta["fingerprints"]}


if __name__ == "__main__":
    run_entry_point(main)
