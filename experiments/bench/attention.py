"""Attention by ranges on TPUs: what its kernels take to compile and hold, and how closely their work follows the mask.

    python experiments/bench/attention.py compile --topology v5p:2x2x1 --length 16384     (several of both may be given)
    python experiments/bench/attention.py blocks

"compile" needs `pip install jax[tpu]` and no TPU: `attend` and its gradients, 28 query and 4 key-value heads of size
128 in bfloat16, one row a chip, are compiled for absent chips through the mesh that training uses. It proves that the
kernels fit a chip and says nothing about speed. "blocks" counts, in rows of `--length` positions packed with documents
of texts and images, the pairs of query and key that are visible and the pairs in blocks that are computed. Both print
one JSON object a line.

What "compile" printed with jax 0.10.2 and libtpu 0.0.42.1, forward and backward, three kernels each (a chip's GiB; the
seconds are those of two busy cores):

    length   topology   seconds  temporary  peak        length   topology   seconds  temporary  peak
    16,384   v5p:2x2x1       20       0.56  0.84        65,536   v5p:2x2x1       22       2.22  3.34
    16,384   v5e:2x2          9       0.55  0.83        65,536   v5e:2x2         20       2.22  3.34
    16,384   v6e:2x2         10       0.55  0.83        65,536   v6e:2x2         19       2.23  3.35

What "blocks" printed. Computed pairs follow the visible ones, not the square of the length, but for a seam of about a
block along every document; splash takes blocks of 512 at 16,384 positions and of 1,024 at 65,536:

                        visible,     computed, of all pairs, and over the visible ones, with blocks of
    length   documents  of all pairs    256              512              1,024
    16,384           1        0.5432    0.5581  1.027    0.5693  1.048    0.5938  1.093
    16,384           2        0.2649    0.2905  1.097    0.3135  1.183    0.3672  1.386
    16,384           8        0.0645    0.0952  1.475    0.1289  1.997    0.1836  2.845
    16,384          16        0.0333    0.0647  1.942    0.0996  2.990    0.1719  5.159
    65,536           1        0.5165    0.5208  1.008    0.5248  1.016    0.5330  1.032
    65,536           2        0.2665    0.2728  1.024    0.2788  1.046    0.2915  1.094
    65,536           8        0.0662    0.0736  1.111    0.0817  1.233    0.0977  1.475
    65,536          16        0.0350    0.0426  1.217    0.0505  1.443    0.0667  1.906
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any

# Set before JAX loads: the TPU compiler looks for a TPU's host otherwise.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from nextflow_jax import sharding  # noqa: E402
from nextflow_jax.ops.attention import attend, splash  # noqa: E402
from nextflow_jax.scales import level_schedule  # noqa: E402
from nextflow_jax.sequence import ImageSegment, SequenceConfig, TextSegment, flatten, pack_row  # noqa: E402
from nextflow_jax.vocabulary import Vocabulary  # noqa: E402

HEADS, KV_HEADS, HEAD_SIZE = 28, 4, 128

DOCUMENTS = (1, 2, 8, 16)
"""Equal documents of a row."""


def compile_attention(topology: str, length: int) -> dict[str, Any]:
    """Compiles values and gradients for every chip of a topology; bytes are one chip's."""
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    mesh, rules = sharding.make_mesh(sharding.MeshConfig(), devices), sharding.make_rules()
    rows = sharding.batch_sharding(mesh, rules)

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(devices), length, *shape), dtype, sharding=rows)

    def gradients(*arrays: jax.Array) -> Any:
        *qkv, start, end = arrays
        return jax.value_and_grad(lambda *x: attend(*x, start, end).astype(jnp.float32).sum(), (0, 1, 2))(*qkv)

    keys, ranges = array(KV_HEADS, HEAD_SIZE), array(dtype=jnp.int32)
    begin = time.perf_counter()
    with sharding.logical_context(mesh, rules):
        compiled = jax.jit(gradients).lower(array(HEADS, HEAD_SIZE), keys, keys, ranges, ranges).compile()
    memory = compiled.memory_analysis()
    return {
        "topology": topology,
        "length": length,
        "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
        "compile_seconds": round(time.perf_counter() - begin, 1),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2),
        "peak_gib": round(memory.peak_memory_in_bytes / 2**30, 2),
    }


def packed_ranges(length: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of a row of equal documents: as many images of the largest level that fits as go in, text for the rest.

    Documents are a little shorter than an even share of the row, so that their bounds fall inside of blocks.
    """
    vocabulary = Vocabulary(text_size=151_936, codebook_size=32_768)
    size = length // documents - 37
    schedule = next(s for s in map(level_schedule, (1024, 512, 256)) if s.num_tokens + 64 <= size or s.num_scales == 12)
    codes = np.zeros(schedule.num_tokens, np.int32)
    images = [ImageSegment(schedule, codes, codes)] * ((size - 2) // (schedule.num_tokens + 1))
    words = size - 2 - len(images) * (schedule.num_tokens + 1)
    segments = [TextSegment(np.zeros(words, np.int32)), *images]
    document = flatten(segments, vocabulary, SequenceConfig())
    row = pack_row([document] * documents, length, vocabulary)
    return row.attend_start, row.attend_end


def count_blocks(length: int) -> Iterator[dict[str, Any]]:
    """Of rows of 1 to 16 documents: visible pairs, and the pairs in blocks of each size that are computed."""
    for documents in DOCUMENTS:
        start, end = packed_ranges(length, documents)
        visible = int(np.sum((end - start).astype(np.int64)))
        shares = {}
        for block in (256, 512, 1024):
            touched = splash.touched_blocks(jnp.asarray(start), jnp.asarray(end), length, block, block)
            pairs = int(touched.sum()) * block**2
            shares[f"block_{block}"] = {"of_all": round(pairs / length**2, 4), "of_visible": round(pairs / visible, 3)}
        yield {
            "length": length,
            "documents": documents,
            "visible_pairs": visible,
            "visible_of_all": round(visible / length**2, 4),
            **shares,
        }


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("compile", "blocks"))
    parser.add_argument("--topology", nargs="+", default=["v5p:2x2x1", "v5e:2x2", "v6e:2x2"])
    parser.add_argument("--length", type=int, nargs="+", default=[16_384, 65_536])
    arguments = parser.parse_args()
    for length in arguments.length:
        if arguments.what == "blocks":
            results = count_blocks(length)
        else:
            results = (compile_attention(topology, length) for topology in arguments.topology)
        for result in results:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
