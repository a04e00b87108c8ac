"""`python -m nextflow_jax.convert`: turns published weights into what our other commands take."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextflow_jax import command
from nextflow_jax.bundle import is_bundle, save_bundle
from nextflow_jax.config import to_plain_dict
from nextflow_jax.convert.flat import flatten_variables
from nextflow_jax.convert.siglip2 import load_published
from nextflow_jax.convert.tokenflow import DESCRIPTION_FILE, load_tokenflow, save_folder
from nextflow_jax.convert.var import LADDERS, load_var
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.experiment import ContrastiveExperiment
from nextflow_jax.training.state import TrainState
from nextflow_jax.vision.codec import VisionTokenizerCodec

DESCRIPTION = """\
Converts published weights, strictly: every array of the file is used once or known to be unused, every array of the
model is filled; otherwise one message lists all that does not fit. What comes out depends on --model:

  var        VAR's VQVAE (vae_ch160v4096z32.pth). OUT becomes a tokenizer bundle, which extract and evaluate take.
  siglip2    SigLIP 2 (a google/siglip2-* folder or its model.safetensors), both towers. OUT becomes the folder of a
             contrastive run with one checkpoint and no training behind it: give it as a tokenizer experiment's
             config.teacher. It cannot be trained on.
  tokenflow  TokenFlow (clipb_224, vitamin_xlarge_256, siglip_384; normal or enhanced decoder). Its architecture is not
             our tokenizer's, so OUT is NOT a bundle: no other command takes it. It holds tokenflow.json and
             tokenflow.safetensors for nextflow_jax.convert.tokenflow.load_folder, whose result
             nextflow_jax.vision.peers.tokenflow.TokenFlow encodes and decodes with.

torch checkpoints are read without torch, and nothing in them is run."""


def main(arguments: Sequence[str]) -> None:
    """Converts one file; see --help."""
    parser = command.command_parser(
        "convert", DESCRIPTION, example="--model var --weights vae_ch160v4096z32.pth --out runs/var"
    )
    parser.add_argument("--model", required=True, choices=sorted(MODELS), help="whose weights they are")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help=".safetensors, a folder of shards, or a torch checkpoint"
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=command.folder, help="made when it is not there")
    parser.add_argument(
        "--side", type=int, choices=sorted(LADDERS), default=min(LADDERS), help="of VAR's pictures, in pixels"
    )
    parser.add_argument(
        "--part",
        default="auto",
        metavar="KEY",
        help="which entry of a training checkpoint holds the weights, e.g. ema or trainer/vae_local (default: found)",
    )
    options = parser.parse_args(arguments)
    params = MODELS[options.model](options)
    count = sum(np.size(array) for array in flatten_variables(params).values())
    print(f"{options.out}: {options.model}, {count:,} parameters from {options.weights}")


def _convert_var(options: argparse.Namespace) -> Any:
    config, variables = load_var(options.weights, options.side, options.part)
    codec = VisionTokenizerCodec(config, variables)
    save_bundle(options.out, vision_tokenizer=codec, origin={"model": "VAR", "weights": _name(options)})
    return variables["params"]


def _convert_siglip2(options: argparse.Namespace) -> Any:
    _require_fresh(options.out)
    config, _, params = load_published(options.weights)
    experiment = ContrastiveExperiment(name="siglip2", model=config)
    state = TrainState(step=np.zeros((), np.int32), params=params, variables={}, opt_state={}, ema={})
    with Checkpoints(options.out, 1, to_plain_dict(experiment), {"weights": _name(options)}) as checkpoints:
        checkpoints.save(0, state, Position(0))
    return params


def _convert_tokenflow(options: argparse.Namespace) -> Any:
    if not (options.out / DESCRIPTION_FILE).is_file():
        _require_fresh(options.out)
    config, variables = load_tokenflow(options.weights, options.part)
    save_folder(options.out, config, variables)
    return variables["params"]


def _name(options: argparse.Namespace) -> str:
    """The file's own name: where it lay on this machine tells nobody anything."""
    return pathlib.Path(options.weights).name


def _require_fresh(out: pathlib.Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "a bundle" if is_bundle(out) else "something else"
        raise UserError(f"--out {out}: holds {what} already; give another folder, or remove it")


MODELS = {"var": _convert_var, "siglip2": _convert_siglip2, "tokenflow": _convert_tokenflow}
"""Name on the command line -> what converts it and returns the parameters."""


if __name__ == "__main__":
    run_entry_point(main)
