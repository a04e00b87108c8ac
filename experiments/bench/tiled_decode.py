"""Memory of the pixel decoder in one piece and in strips; with --run, seconds and the largest difference too.

    python experiments/bench/tiled_decode.py [--size 1024 1024] [--rows 64] [--dtype float32] [--run]

Prints one line of JSON a decoder: "published" (base 128, 3 blocks a level) and "doubled" (base 256, 5 blocks). Bytes
are the compiled program's temporary memory (`memory_analysis`), parameters and pictures not counted; nothing is run
without --run. Compiling takes about a minute on two CPU cores.

One 1024 x 1024 picture, float32, compiled for CPU:

    decoder      whole      strips of 64    strips of 32
    published    1,611 MB         306 MB          264 MB
    doubled      3,221 MB         638 MB          549 MB

The rest is the last level's input (134 and 268 MB) and a few strips. In bfloat16 these figures mean nothing on a CPU,
which computes in float32 and keeps copies.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
from flax.core import meta

from nextflow_jax.vision.cnn import PixelConfig, PixelDecoder
from nextflow_jax.vision.tiled import tiled_decode

PUBLISHED = {"stem": 1, "multipliers": (1, 1, 2, 2, 4), "latent": 256, "groups": 32, "attention": True}
DECODERS = {
    "published": PixelConfig(**PUBLISHED, decoder_base=128, decoder_blocks=3),
    "doubled": PixelConfig(**PUBLISHED, decoder_base=256, decoder_blocks=5),
}


def measure(config: PixelConfig, size: tuple[int, int], rows: int, dtype: str, run: bool) -> dict[str, object]:
    """Bytes of both ways of decoding one picture of `size` pixels; seconds and difference when run."""
    decoder = PixelDecoder(config, jnp.dtype(dtype))
    latents = jax.ShapeDtypeStruct((1, size[0] // config.stride, size[1] // config.stride, config.latent), jnp.float32)
    params = meta.unbox(jax.eval_shape(decoder.init, jax.random.key(0), latents))["params"]
    ways = {
        "whole": lambda params, latents: decoder.apply({"params": params}, latents),
        "tiled": lambda params, latents: tiled_decode(config, jnp.dtype(dtype), params, latents, rows),
    }
    programs = {name: jax.jit(way).lower(params, latents).compile() for name, way in ways.items()}
    result = {f"{name}_bytes": way.memory_analysis().temp_size_in_bytes for name, way in programs.items()}
    if run:
        latents = jax.random.normal(jax.random.key(1), latents.shape)
        params = meta.unbox(decoder.init(jax.random.key(0), latents))["params"]
        pictures = {}
        for name, way in programs.items():
            start = time.perf_counter()
            pictures[name] = jax.block_until_ready(way(params, latents))
            result[f"{name}_seconds"] = time.perf_counter() - start
        result["difference"] = float(jnp.max(jnp.abs(pictures["whole"] - pictures["tiled"])))
    return result


def main() -> None:
    """Measures both decoders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rows", type=int, default=64, help="height of a strip")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--run", action="store_true", help="decode, too")
    arguments = parser.parse_args()
    for name, config in DECODERS.items():
        result = measure(config, tuple(arguments.size), arguments.rows, arguments.dtype, arguments.run)
        print(json.dumps({"decoder": name, **vars(arguments), **result}), flush=True)


if __name__ == "__main__":
    main()
