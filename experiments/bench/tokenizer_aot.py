"""Does the tokenizer of the published size fit TPUs? Compiles for them on any machine and prints the bytes.

    python experiments/bench/tokenizer_aot.py --what train --level 512
    python experiments/bench/tokenizer_aot.py --what encode --level 1024        (and decode)

Needs `pip install jax[tpu]` and no TPU: the compiler alone knows a chip's memory and refuses a program that does not
fit. Prints one JSON object; bytes are one chip's. "peak_bytes" includes the arguments and is what counts against
"limit_bytes"; "temporary_bytes" is an upper bound. Nothing is run, so this says nothing about speed.

Training is the real step of nextflow_jax.training: both branches, frozen teacher, LPIPS and a PatchGAN discriminator
unless --no-judges, AdamW, parameters and optimizer state split over --fsdp chips. Encoding and decoding are the frozen
tokenizer's, a block of the batch a chip, parameters whole on each.

What it printed for v5e:4x4 (limit 15.75 GiB a chip), peak GiB, with jax 0.10.2 and libtpu 0.0.42.1:

    train  512   batch 16 --no-judges  5.58        encode 1024  batch 16  3.42
    train  512   batch 32              9.72        decode 1024  batch 16  1.93
    train  512   batch 64              does not fit: temporaries alone are 16.27
"""

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from nextflow_jax import sharding
from nextflow_jax.aot.compiling import compile_program
from nextflow_jax.aot.programs import PlannedProgram, local_bytes, placed, training_step
from nextflow_jax.aot.topology import Topology, open_topology
from nextflow_jax.data.pictures import PicturesConfig
from nextflow_jax.training.experiment import TokenizerExperiment
from nextflow_jax.training.flops import traced_flops
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import num_parameters
from nextflow_jax.vision.adversarial import AdversarialConfig
from nextflow_jax.vision.codec import images_to_float, images_to_uint8
from nextflow_jax.vision.losses import TokenizerLossConfig
from nextflow_jax.vision.presets import nextflow_tokenizer
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

NOT_AT_HAND = "not at hand"
"""Weights of teacher and judges: their shapes are known without."""


def make_config(arguments: argparse.Namespace) -> VisionTokenizerConfig:
    """The published tokenizer with the choices of the command line."""
    config = nextflow_tokenizer(arguments.level, enlarged_decoder=arguments.enlarged_decoder, remat=arguments.remat)
    return dataclasses.replace(config, pixel=dataclasses.replace(config.pixel, remat=arguments.pixel_remat))


def plan_training(arguments: argparse.Namespace, topology: Topology) -> PlannedProgram:
    """The training step on all devices."""
    judged, side = not arguments.no_judges, arguments.level
    experiment = TokenizerExperiment(
        mesh=sharding.MeshConfig(fsdp=arguments.fsdp),
        optimizer=OptimizerConfig(clip_groups=("^discriminator/",) if judged else ()),
        train=TrainConfig(batch_size=arguments.batch),
        pictures=PicturesConfig(size=(side, side)),
        model=make_config(arguments),
        loss=TokenizerLossConfig(lpips=1.0 if judged else 0.0),
        adversarial=AdversarialConfig(weight=0.5 if judged else 0.0),
        teacher=NOT_AT_HAND,
        lpips_vgg=NOT_AT_HAND,
        lpips_linear=NOT_AT_HAND,
    )
    return training_step(experiment, topology)


def plan_use(arguments: argparse.Namespace, topology: Topology) -> PlannedProgram:
    """Encoding or decoding with the frozen tokenizer on all devices."""
    config, size = make_config(arguments), (arguments.level, arguments.level)
    mesh = sharding.make_mesh(sharding.MeshConfig(), topology.devices)
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh, sharding.make_rules())
    tokenizer, schedule = VisionTokenizer(config), config.family.schedule(size)

    def encode(variables: Any, images: jax.Array) -> jax.Array:
        return tokenizer.apply(variables, images_to_float(images), method="encode")[0]

    def decode(variables: Any, codes: jax.Array) -> jax.Array:
        features = tokenizer.apply(variables, codes, schedule, method="accumulate")[-1]
        return images_to_uint8(tokenizer.apply(variables, features, method="decode_features"))

    inputs = {
        "encode": (encode, jax.ShapeDtypeStruct((arguments.batch, *size, 3), jnp.uint8)),
        "decode": (decode, jax.ShapeDtypeStruct((arguments.batch, schedule.num_tokens), jnp.int32)),
    }
    function, batch = inputs[arguments.what]
    init = jax.eval_shape(lambda: tokenizer.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
    variables, batch = placed(meta.unbox(init), everywhere), placed(batch, rows)
    traced = jax.jit(function, out_shardings=rows).trace(variables, batch)
    flops = traced_flops(traced.jaxpr)
    return PlannedProgram(
        name=arguments.what,
        lowered=traced.lower(),
        flops=flops,
        params=num_parameters(variables["params"]),
        tokens=arguments.batch * schedule.num_tokens,
        model_flops=sum(flops),
        argument_bytes=local_bytes((variables, batch)),
        mesh=dict(mesh.shape),
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles and reads the bytes of one chip; of a program that does not fit those that the compiler told."""
    jax.config.update("jax_platforms", "cpu")
    topology = open_topology(arguments.topology)
    program = (plan_training if arguments.what == "train" else plan_use)(arguments, topology)
    compiled = compile_program(program, topology, arguments.effort)
    memory, limit = compiled.memory, topology.hbm_limit
    return {
        "chips": topology.chips,
        "parameters": program.params,
        "limit_bytes": limit,
        "fits": compiled.compiled is not None and memory.peak <= limit,
        "argument_bytes": memory.arguments,
        "temporary_bytes": memory.temporaries,
        "peak_bytes": memory.peak,
        "compile_seconds": round(compiled.seconds, 1),
    }


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--what", choices=("train", "encode", "decode"), default="train")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--level", type=int, default=512, choices=(256, 512, 1024))
    parser.add_argument("--batch", type=int, default=16, help="pictures, over all chips")
    parser.add_argument("--fsdp", type=int, default=16, help="chips that share one copy of the state (train)")
    parser.add_argument("--remat", default="full", help="of the transformers")
    parser.add_argument("--pixel-remat", default="full", help="of the convolutions")
    parser.add_argument("--enlarged-decoder", action="store_true", help="base 256, 5 blocks a level")
    parser.add_argument("--no-judges", action="store_true", help="train without LPIPS and discriminator")
    parser.add_argument(
        "--effort", type=float, default=-1.0, help="of the compiler: -1 compiles four times faster than 0, its default"
    )
    arguments = parser.parse_args()
    print(json.dumps({**vars(arguments), **measure(arguments)}), flush=True)


if __name__ == "__main__":
    main()
