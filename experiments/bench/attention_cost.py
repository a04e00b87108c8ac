"""Seconds of attention, forward and backward, over packed rows of ever more documents, beside the visible pairs.

    python -m experiments.bench.attention_cost [--lengths 4096 8192 16384] [--documents 1 2 4 8 16 64]
    python -m experiments.bench.attention_cost --lengths 256 --rows 6 --heads 4 --kv_heads 4 --head_size 32 --runs 30

(from the repository's root) prints one line of JSON a measurement, then a table. A row holds equal documents: half
text, each token seeing what is before it, half an image, each scale seeing itself and what is before it. "pairs" counts
query-key pairs inside the ranges of a row. TFLOP/s count visible pairs alone: 4 x heads x head size operations each
forward, 2.5 times as many backward. The last lines say, for each implementation and length, how time follows the pairs:
its correlation with their number, and time and pairs of the most documents relative to one.

Without options it takes what belongs to the machine: on a CPU "blocked" and "chunked", float32, 4 heads of 64 over 2;
on a GPU "flash" at the 7B decoder's 28 heads of 128 over 4 in bfloat16; on a TPU "splash" likewise. The second command
is the quickstart's decoder: what "auto" should take on a CPU for short rows.

Result on two CPU cores (AMD EPYC with AVX-512, jax 0.10.2), milliseconds of "blocked", then of "chunked", which
computes every pair and is 2.3 to 70 times slower:

    documents      1      2      4      8     16     64
    4096         319    170     98     56     39     38        719 to 661, whatever the documents
    8192       1,150    634    330    195    115     85      2,641 to 2,928
    16384      4,556  2,346  1,197    650    381    161        11,392 to 11,662
    visible    50.9%  25.6%  12.9%   6.5%   3.3%   0.8%      (of 8192)

Time follows the pairs (correlation 0.999 to 1.000) down to blocks' size; then what is left is one pass over the rows.
Rows of 256 (second command) are one block: 10 to 12 ms for both, whatever they hold.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax import sharding
from nextflow_jax.ops import attention

CPU = {"implementations": ["blocked", "chunked"], "heads": 4, "kv_heads": 2, "head_size": 64, "dtype": "float32"}
ACCELERATOR = {"heads": 28, "kv_heads": 4, "head_size": 128, "dtype": "bfloat16"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": CPU,
    "gpu": {"implementations": ["flash"], **ACCELERATOR},
    "tpu": {"implementations": ["splash"], **ACCELERATOR},
}


def packed_ranges(length: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """start, end [S] of equal documents, each text and then the scales k x k, k = 1, 2, ..., of an image."""
    start, end = np.zeros(length, np.int32), np.zeros(length, np.int32)
    edges = np.linspace(0, length, documents + 1).astype(int)
    for first, last in zip(edges, edges[1:], strict=False):
        start[first:last] = first
        image = (first + last) // 2
        end[first:image] = np.arange(first, image) + 1
        scale = 1
        while image < last:
            size = min(scale * scale, last - image)
            end[image : image + size] = image + size
            image, scale = image + size, scale + 1
    return start, end


def measure(name: str, length: int, documents: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compiles and runs one implementation on one row layout."""
    start, end = packed_ranges(length, documents)
    pairs = int((end.astype(np.int64) - start).sum())
    generator = np.random.default_rng(0)
    shapes = [(options.rows, length, heads, options.head_size) for heads in (options.heads, *[options.kv_heads] * 2)]
    arrays = [jnp.asarray(generator.normal(size=shape), options.dtype) for shape in shapes]
    ranges = [jnp.tile(x, (options.rows, 1)) for x in (start, end)]
    jax.block_until_ready(gradients(name)(*arrays, *ranges))
    seconds = min(seconds_of(gradients(name), [*arrays, *ranges]) for _ in range(options.runs))
    operations = 3.5 * 4 * options.heads * options.head_size * pairs * options.rows
    return {
        "implementation": name,
        "length": length,
        "documents": documents,
        "pairs": pairs,
        "share": pairs / length**2,
        "milliseconds": seconds * 1e3,
        "tflops": operations / seconds / 1e12,
    }


@functools.cache
def gradients(name: str) -> Callable[..., Any]:
    """(q, k, v, start, end) -> the sum of all values and its gradients; compiled once for all layouts of a shape."""

    @jax.jit
    def value_and_gradients(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> Any:
        def loss(*x: jax.Array) -> jax.Array:
            return attention.attend(*x, start, end, implementation=name).astype(jnp.float32).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    return value_and_gradients


def seconds_of(function: Callable[..., Any], arrays: list[jax.Array]) -> float:
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arrays))
    return time.perf_counter() - start


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements, one line each, then how time follows the pairs."""
    lines = [f"{'':<10}{'length':>8}{'documents':>11}{'pairs':>14}{'share':>8}{'ms':>11}{'ns/pair':>9}{'TFLOP/s':>9}"]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["implementation"], row["length"]), []).append(row)
        lines.append(
            f"{row['implementation']:<10}{row['length']:>8}{row['documents']:>11}{row['pairs']:>14,}{row['share']:>8.4f}"
            f"{row['milliseconds']:>11.2f}{row['milliseconds'] * 1e6 / row['pairs']:>9.2f}{row['tflops']:>9.3f}"
        )
    for (name, length), group in groups.items():
        if len(group) > 1:
            pairs, times = (np.array([row[key] for row in group], float) for key in ("pairs", "milliseconds"))
            lines.append(
                f"{name} at {length}: correlation of time with pairs {np.corrcoef(pairs, times)[0, 1]:.3f}; "
                f"{group[-1]['documents']} documents against {group[0]['documents']}: "
                f"{pairs[-1] / pairs[0]:.4f} of the pairs, {times[-1] / times[0]:.4f} of the time"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures every implementation on every layout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--rows", type=int, default=1, help="rows of a batch, all alike")
    parser.add_argument("--runs", type=int, default=3, help="of each; the fastest counts")
    parser.add_argument("--implementations", nargs="+", choices=sorted(attention.IMPLEMENTATIONS))
    parser.add_argument("--heads", type=int)
    parser.add_argument("--kv_heads", type=int)
    parser.add_argument("--head_size", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.set_defaults(**DEFAULTS[sharding.platform()])
    options = parser.parse_args()
    rows = []
    for length in options.lengths:
        for name in options.implementations:
            for documents in options.documents:
                rows.append(measure(name, length, documents, options))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
