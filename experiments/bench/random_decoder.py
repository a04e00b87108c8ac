"""What the decoder's benchmarks share: any preset with random weights, made on the device in their dtype."""

import argparse
import ast
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax.core import meta

from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.presets import PRESETS, decoder_preset
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.vision.presets import nextflow_tokenizer
from nextflow_jax.vision.tokenizer import VisionTokenizerConfig
from nextflow_jax.vocabulary import Vocabulary

MAX_SCALES = 19
"""Of the 1024 level and a context block, at every level: no array changes its shape between stages."""


def add_model_flags(parser: argparse.ArgumentParser, preset: str) -> None:
    """Flags that name a decoder."""
    parser.add_argument("--preset", default=preset, choices=sorted(PRESETS))
    parser.add_argument("--change", nargs="*", default=[], metavar="FIELD=VALUE", help="of the preset: layers=32")
    parser.add_argument("--text_size", type=int, default=152_064, help="text ids; Qwen2.5's tables have this many")
    parser.add_argument("--codes", type=int, default=16_384, help="codes of the vision tokenizer")


def decoder_config(arguments: argparse.Namespace, **changes: Any) -> DecoderConfig:
    """The decoder that the flags name; `--change` wins over `changes`."""
    for change in arguments.change:
        name, _, value = change.partition("=")
        try:
            changes[name] = ast.literal_eval(value)
        except ValueError:
            changes[name] = value
    vocabulary = Vocabulary(arguments.text_size, arguments.codes)
    return decoder_preset(arguments.preset, vocabulary, tokenizer_config(256, arguments.codes).quantizer.dim,
                          MAX_SCALES, **changes)  # fmt: skip


def tokenizer_config(level: int, codes: int, small: bool = False) -> VisionTokenizerConfig:
    """The published vision tokenizer, or one whose branches are thin, for machines without an accelerator."""
    config = nextflow_tokenizer(level, codes, remat="none")
    if not small:
        return config
    stack = dataclasses.replace(config.vit.transformer, width=64, layers=1, heads=2, mlp_width=128)
    return dataclasses.replace(
        config,
        vit=dataclasses.replace(config.vit, transformer=stack),
        semantic_decoder=stack,
        pixel=dataclasses.replace(config.pixel, encoder_base=16, decoder_base=16, latent=32, groups=8),
        dtype="float32",
    )


def random_variables(config: DecoderConfig, sequence: SequenceConfig, seed: int = 0) -> Any:
    """A decoder's variables, initialised on the device: no copy goes through the host."""
    decoder, inputs = Decoder(config), DecoderInputs.zeros(1, 1, sequence.taps)
    return jax.jit(lambda key: meta.unbox(decoder.init(key, inputs)))(jax.random.key(seed))


def num_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, abstract or not."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def seconds_of(work: Callable[[], Any], runs: int) -> tuple[float, list[float]]:
    """The first call's seconds, compilation included, and those of `runs` more."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - begin)
    return times[0], times[1:]


def steady(times: Sequence[float]) -> float:
    """The median of several times."""
    return statistics.median(times)


def peak_memory() -> int | None:
    """The most bytes that the first device has held, where the platform counts them."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    return statistics_of_device.get("peak_bytes_in_use")
