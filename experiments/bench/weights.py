"""Memory that starting from published weights takes: a synthetic checkpoint streamed into a sharded decoder.

    python -m experiments.bench.weights [--megabytes 500] [--devices 8]

Writes a random Qwen2 checkpoint (bfloat16, several shards) to a temporary folder, streams it into float32 arrays over
simulated CPU devices (fsdp), and prints one JSON object. On CPUs the devices' memory is the host's, so the arrays
themselves are taken off: `overhead` is what anonymous memory rose by at most, beyond the arrays placed so far at the
end; `mapped` the most that file pages took, which the system may drop at any time. Bound: one tensor in the target's
dtype, of which a host holds the parts that its devices do. `read_whole_mib` is what reading the tree first would take.

Two shared cores, MiB; the overhead does not grow with the checkpoint, some 60 of it are the compiler's:

    checkpoint  devices  arrays  largest tensor  largest stack  overhead  mapped
           126        8     259              48             28        76      62
           370        8     747              48            191       106      62
           942        8    1891              48            572       132      62
           942        1    1891              48            572        82      61
"""

import argparse
import json
import math
import os
import pathlib
import tempfile
import threading
import time

LAYERS, WIDTH, HEADS, KV_HEADS = 12, 768, 12, 4
MIB = 2**20


def main() -> None:
    """Parses flags, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="of the checkpoint, about")
    parser.add_argument("--devices", type=int, default=8)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(pathlib.Path(folder), options.megabytes * 10**6)))


def measure(folder: pathlib.Path, size: int) -> dict[str, float]:
    """Writes the checkpoint and streams it; MiB."""
    import jax
    import numpy as np

    from nextflow_jax import sharding
    from nextflow_jax.convert.placement import place
    from nextflow_jax.convert.qwen2_5 import open_checkpoint, stream_tower, text_part
    from nextflow_jax.convert.qwen2_5_config import decoder_config, read_tower
    from nextflow_jax.models.decoder import Decoder, DecoderInputs

    mlp, text = write_checkpoint(folder, size)
    config = decoder_config(read_tower(folder), 1024, 40, 12)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
    boxed = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))["params"]
    placements = sharding.shardings_of(boxed, mesh, sharding.make_rules())
    shapes = jax.tree.map(lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype), boxed, is_leaf=_is_box)
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, placements)
    targets = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
               for path, leaf in jax.tree_util.tree_leaves_with_path(placed)}  # fmt: skip
    start, before = time.perf_counter(), memory()
    with Watch() as watch:
        made = place(stream_tower(open_checkpoint(folder), config), targets)
    seconds = time.perf_counter() - start
    arrays = sum(array.nbytes for array in made.values())
    wanted = jax.tree.leaves(text_part(config))
    largest = 4 * max(WIDTH * text, WIDTH * mlp)
    return {
        "devices": mesh.size,
        "checkpoint_mib": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MIB,
        "arrays_mib": arrays / MIB,
        "largest_tensor_mib": largest / MIB,
        "largest_stack_mib": 4 * LAYERS * WIDTH * mlp / MIB,
        "overhead_mib": (watch.anonymous - before["RssAnon"] - arrays) / MIB,
        "mapped_mib": (watch.mapped - before["RssFile"]) / MIB,
        "read_whole_mib": sum(np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape) for leaf in wanted) / MIB,
        "seconds": seconds,
    }


def write_checkpoint(folder: pathlib.Path, size: int) -> tuple[int, int]:
    """A random checkpoint of about `size` bytes, a shard a layer; returns (MLP width, vocabulary)."""
    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file

    mlp, text = size // (2 * WIDTH * 3 * (LAYERS + 4)) // 16 * 16, 16384
    head = WIDTH // HEADS
    values = {"model_type": "qwen2", "vocab_size": text, "hidden_size": WIDTH, "intermediate_size": mlp,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    layer = {"input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,),
             "self_attn.o_proj.weight": (WIDTH, WIDTH), "mlp.gate_proj.weight": (mlp, WIDTH),
             "mlp.up_proj.weight": (mlp, WIDTH), "mlp.down_proj.weight": (WIDTH, mlp)}  # fmt: skip
    for letter, heads in zip("qkv", (HEADS, KV_HEADS, KV_HEADS)):
        layer[f"self_attn.{letter}_proj.weight"] = (heads * head, WIDTH)
        layer[f"self_attn.{letter}_proj.bias"] = (heads * head,)
    parts = [{f"model.layers.{i}.{name}": shape for name, shape in layer.items()} for i in range(LAYERS)]
    table = (text, WIDTH)
    parts.append({"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (WIDTH,)})
    generator, weight_map = np.random.default_rng(0), {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        arrays = {name: generator.standard_normal(shape, np.float32) for name, shape in part.items()}
        save_file({name: array.astype(jnp.bfloat16) for name, array in arrays.items()}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return mlp, text


class Watch:
    """The most memory of each kind while it is entered, looked at every few milliseconds."""

    def __enter__(self) -> "Watch":
        self.anonymous = self.mapped = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.003):
            now = memory()
            self.anonymous = max(self.anonymous, now["RssAnon"])
            self.mapped = max(self.mapped, now["RssFile"])


def memory() -> dict[str, int]:
    """Bytes of this process by kind, of Linux."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


def _is_box(leaf: object) -> bool:
    return hasattr(leaf, "names") and hasattr(leaf, "value")


if __name__ == "__main__":
    main()
