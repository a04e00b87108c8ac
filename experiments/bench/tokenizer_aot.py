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
    train  512   batch 64              does not fit: temporaries alone are 16.19
"""

import argparse
import dataclasses
import json
import os
import time
from typing import Any

# Set before JAX loads: the TPU compiler looks for a TPU's host otherwise.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax.core import meta  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from nextflow_jax import sharding  # noqa: E402
from nextflow_jax.aot.chips import CHIPS, GIB  # noqa: E402
from nextflow_jax.data.pictures import PicturesConfig  # noqa: E402
from nextflow_jax.training.experiment import TokenizerExperiment  # noqa: E402
from nextflow_jax.training.optimizer import OptimizerConfig  # noqa: E402
from nextflow_jax.training.settings import TrainConfig  # noqa: E402
from nextflow_jax.training.state import make_layout, num_parameters  # noqa: E402
from nextflow_jax.training.step import lower_step  # noqa: E402
from nextflow_jax.training.tasks.tokenizer import Teacher, TokenizerTask  # noqa: E402
from nextflow_jax.vision.adversarial import AdversarialConfig  # noqa: E402
from nextflow_jax.vision.codec import images_to_float, images_to_uint8  # noqa: E402
from nextflow_jax.vision.losses import TokenizerLossConfig  # noqa: E402
from nextflow_jax.vision.lpips import lpips_shapes  # noqa: E402
from nextflow_jax.vision.presets import nextflow_tokenizer, siglip2  # noqa: E402
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig  # noqa: E402
from nextflow_jax.vision.vit import ViT  # noqa: E402

LIMITS = {name: chip.hbm_limit / GIB for name, chip in CHIPS.items()}
"""GiB a chip that the compiler lets a program have."""


class PlannedTask(TokenizerTask):
    """The tokenizer task without its files: pictures, teacher and LPIPS have shapes and no values."""

    def __init__(self, experiment: TokenizerExperiment) -> None:
        self._experiment = experiment
        self._model = VisionTokenizer(experiment.model)
        self._teacher = Teacher(siglip2("so400m-patch16", dtype=experiment.model.dtype), {}, "")

    def constants(self) -> dict[str, Any]:
        """Zeros; only their shapes are asked for."""
        vit = self._teacher.config.vit
        tower = jax.eval_shape(lambda: ViT(vit, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
        shapes = {"teacher": {"vision": meta.unbox(tower)["params"]}}
        if self._experiment.loss.lpips:
            shapes["lpips"] = lpips_shapes()
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def batch_specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Squares of the level."""
        shape = (self._experiment.train.batch_size, *self._experiment.pictures.size, 3)
        return ({"images": jax.ShapeDtypeStruct(shape, jnp.uint8)},)


def make_config(arguments: argparse.Namespace) -> VisionTokenizerConfig:
    """The published tokenizer with the choices of the command line."""
    config = nextflow_tokenizer(arguments.level, enlarged_decoder=arguments.enlarged_decoder, remat=arguments.remat)
    return dataclasses.replace(config, pixel=dataclasses.replace(config.pixel, remat=arguments.pixel_remat))


def lower_training(arguments: argparse.Namespace, devices: list[jax.Device]) -> tuple[jax.stages.Lowered, int]:
    """The training step on all devices, and the number of parameters it updates."""
    judged, side = not arguments.no_judges, arguments.level
    experiment = TokenizerExperiment(
        mesh=sharding.MeshConfig(fsdp=arguments.fsdp),
        optimizer=OptimizerConfig(clip_groups=("^discriminator/",) if judged else ()),
        train=TrainConfig(batch_size=arguments.batch),
        pictures=PicturesConfig(size=(side, side)),
        model=make_config(arguments),
        loss=TokenizerLossConfig(lpips=1.0 if judged else 0.0),
        adversarial=AdversarialConfig(weight=0.5 if judged else 0.0),
    )
    task, mesh = PlannedTask(experiment), sharding.make_mesh(experiment.mesh, devices)
    layout = make_layout(task, experiment.optimizer, experiment.train.steps, mesh, sharding.make_rules())
    return lower_step(task, layout, 0, task.batch_specs()[0]), num_parameters(layout.abstract.params)


def lower_use(arguments: argparse.Namespace, devices: list[jax.Device]) -> tuple[jax.stages.Lowered, int]:
    """Encoding or decoding with the frozen tokenizer on all devices, and its number of parameters."""
    config, size = make_config(arguments), (arguments.level, arguments.level)
    mesh = sharding.make_mesh(sharding.MeshConfig(), devices)
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
    variables = meta.unbox(init)
    program = jax.jit(function, in_shardings=(everywhere, rows), out_shardings=rows)
    return program.lower(variables, batch), num_parameters(variables["params"])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles and reads the bytes of one chip; a program that does not fit gives the compiler's message instead."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
    devices = list(topology.devices)
    limit = int(LIMITS[arguments.topology.split(":")[0]] * 2**30)
    lowered, parameters = (lower_training if arguments.what == "train" else lower_use)(arguments, devices)
    result = {"chips": len(devices), "parameters": parameters, "limit_bytes": limit}
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": arguments.effort})
        memory = compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**result, "fits": False, "compiler_says": str(error)[:600]}
    return {
        **result,
        "fits": memory.peak_memory_in_bytes <= limit,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "compile_seconds": round(time.perf_counter() - begin, 1),
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
