"""Seconds an image: the whole sampler and each of its parts, with random weights of any preset, on whatever is there.

    python -m experiments.bench.sampling --preset small --level 256 --codes 2048 --text_size 1000 --small_tokenizer
    python -m experiments.bench.sampling --preset qwen2_5_vl_7b --level 1024 --batch 1 8            (a GPU of 80 GB)

"first" is the first batch, compilation and reading programs from the compile cache included; "steady" is the median of
the batches after it; both are seconds a picture of the real `Sampler`, from the request to pixels on the host. Parts
are timed in one more batch that waits for the device after each of them, so they sum to a little more than a batch
without these stops; "host" is what no part accounts for. Random weights draw noise, which takes as long as anything.

The frozen tokenizer decodes in chunks of a fixed number of pictures, filled up: by default 32 of 256 pixels, 8 of 512,
2 of 1024, whatever the batch. `--decode_chunk` sets fewer.

Prints a line of JSON a batch size, then a table. `--cache DIR` keeps compiled programs there: run it twice to see what
the second process saves in "first".

Result of the first command on two CPU cores (AMD EPYC with AVX-512, jax 0.10.2): 1.7M parameters, one picture of 256
pixels with guidance, 0.192 s steady, 19.3 s first. Prompt 3 ms; scales of 1 to 64 codes 1 to 8 ms each, of 100 11, 144
19, 196 27, 256 38 ms; vision decode 69 ms; host 4 ms. No GPU or TPU was at hand for the second.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from experiments.bench.random_decoder import (
    add_model_flags,
    decoder_config,
    num_bytes,
    peak_memory,
    random_variables,
    seconds_of,
    steady,
    tokenizer_config,
)
from nextflow_jax import compile_cache, sharding
from nextflow_jax.bundle import Bundle, DecoderPart
from nextflow_jax.sampling.phases import Phases, make_phases
from nextflow_jax.sampling.requests import Request, text_to_image
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.training.state import num_parameters
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer


class Words:
    """A text tokenizer without a file: every letter is an id."""

    fingerprint, file_name = "", ""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [ord(letter) % self.size for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Letters for ids."""
        return "".join(map(chr, ids))


def make_bundle(arguments: argparse.Namespace) -> Bundle:
    """A model with random weights, all of them made on the device."""
    config = decoder_config(
        arguments, dtype=arguments.dtype, param_dtype=arguments.dtype, attention=arguments.attention
    )
    tokenizer = tokenizer_config(arguments.level, arguments.codes, arguments.small_tokenizer)
    module, image = VisionTokenizer(tokenizer), jnp.zeros((1, 256, 256, 3))
    variables = jax.jit(lambda key: meta.unbox(module.init(key, image, train=False)))(jax.random.key(1))
    sequence = SequenceConfig()
    part = DecoderPart(config, random_variables(config, sequence), sequence, False, max_positions=65_536)
    codec = VisionTokenizerCodec(tokenizer, variables, chunk=arguments.decode_chunk)
    return Bundle(codec, Words(arguments.text_size), part)


def make_requests(arguments: argparse.Namespace, batch: int, seed: int) -> list[Request]:
    """Prompts of one length, pictures of the level's square."""
    settings = SamplingSettings(
        guidance=arguments.guidance, temperature=1.0, top_k=arguments.top_k, top_p=arguments.top_p
    )
    prompt, size = "a" * arguments.prompt, (arguments.level, arguments.level)
    return [text_to_image(prompt, size=size, seed=seed + i, settings=settings) for i in range(batch)]


class Stopwatch:
    """Seconds of each part of a batch: what it watches waits for the device before it returns."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    def watch(self, name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added to the part that `name` gives for its keyword arguments."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = jax.block_until_ready(function(*arguments, **options))
            part = name(**options)
            self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - begin
            return result

        return timed


def parts_of_a_batch(bundle: Bundle, sampler: Sampler, requests: list[Request]) -> dict[str, float]:
    """Seconds of one batch by part; the samplers of a configuration share its phases, so they are watched there."""
    phases: Phases = make_phases(bundle.decoder.config, bundle.decoder.sequence)
    codec, watch = bundle.codec, Stopwatch()
    kept = phases.read_prompt, phases.draw_scale, codec.dispatch

    def decode(*arguments: Any) -> Any:
        pending = kept[2](*arguments)
        pending.stages()
        return pending

    phases.read_prompt = watch.watch(lambda **_: "prompt", phases.read_prompt)
    phases.draw_scale = watch.watch(lambda schedule, k: f"scale {k + 1}: {schedule.counts[k]} codes", phases.draw_scale)
    codec.dispatch = watch.watch(lambda **_: "vision decode", decode)
    begin = time.perf_counter()
    generate(sampler, requests)
    total = time.perf_counter() - begin
    phases.read_prompt, phases.draw_scale, codec.dispatch = kept
    return {**watch.parts, "host": total - sum(watch.parts.values())}


def generate(sampler: Sampler, requests: list[Request]) -> list[Any]:
    """Pixels of every request, on the host."""
    return [result.images[0] for result in sampler.generate(requests)]


def measure(arguments: argparse.Namespace, bundle: Bundle, batch: int) -> dict[str, Any]:
    """One batch size."""
    sampler = Sampler(bundle, max_batch=batch, max_cache_bytes=arguments.max_cache_gib * 2**30)
    seeds = iter(range(0, 10**6, batch))
    first, times = seconds_of(lambda: generate(sampler, make_requests(arguments, batch, next(seeds))), arguments.runs)
    parts = parts_of_a_batch(bundle, sampler, make_requests(arguments, batch, next(seeds)))
    device = jax.devices()[0]
    return {
        "preset": arguments.preset,
        "change": arguments.change,
        "parameters": num_parameters(bundle.decoder.variables["params"]),
        "weight_bytes": num_bytes(bundle.decoder.variables),
        "level": arguments.level,
        "batch": batch,
        "guidance": arguments.guidance,
        "dtype": arguments.dtype,
        "attention": arguments.attention,
        "platform": sharding.platform(),
        "device": device.device_kind,
        "first_seconds_an_image": first / batch,
        "steady_seconds_an_image": steady(times) / batch,
        "fastest_seconds_an_image": min(times) / batch,
        "parts_seconds_a_batch": parts,
        "peak_bytes": peak_memory(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Batch sizes as columns, parts as lines; milliseconds a picture."""
    lines = [f"{'milliseconds a picture':<26}" + "".join(f"{'batch ' + str(row['batch']):>12}" for row in rows)]

    def line(name: str, values: list[float]) -> str:
        return f"{name:<26}" + "".join(f"{1000 * value:>12,.1f}" for value in values)

    for name in ("first", "steady"):
        lines.append(line(name, [row[f"{name}_seconds_an_image"] for row in rows]))
    for part in rows[0]["parts_seconds_a_batch"]:
        lines.append(line(f"  {part}", [row["parts_seconds_a_batch"][part] / row["batch"] for row in rows]))
    return "\n".join(lines)


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_flags(parser, "small")
    parser.add_argument("--level", type=int, default=256, choices=(256, 512, 1024))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="pictures at once; several are measured")
    parser.add_argument("--guidance", type=float, default=4.0, help="1 for none, which halves the rows")
    parser.add_argument("--top_k", type=int, default=900)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--prompt", type=int, default=64, help="text tokens of a prompt")
    parser.add_argument("--dtype", default="", help="of weights and computation; default: the preset's computation")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--small_tokenizer", action="store_true", help="a thin vision tokenizer, for CPUs")
    parser.add_argument("--decode_chunk", type=int, default=32, help="pictures decoded at once at most")
    parser.add_argument("--max_cache_gib", type=int, default=48)
    parser.add_argument("--runs", type=int, default=3, help="batches after the first")
    parser.add_argument("--cache", default="", help="folder of the compile cache; empty: none")
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or decoder_config(arguments).dtype
    if arguments.cache:
        compile_cache.enable(arguments.cache)
    bundle, rows = make_bundle(arguments), []
    for batch in arguments.batch:
        rows.append(measure(arguments, bundle, batch))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
