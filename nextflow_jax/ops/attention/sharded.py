"""Runs an attention kernel on every device's part of a sharded batch: what XLA cannot partition, it need not.

Rows lie on the batch axes, heads on the tensor axis and queries on the context axis of the mesh. Keys and values of a
row are gathered over the context axis, since ranges count all the row's keys; the backward pass scatters their
gradients back. That costs 2 G A numbers a key and layer, whatever the mask; a ring of key blocks would move as many,
but every device would wait for the slowest one at each of its steps.
"""

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.sharding import mesh_axes, partition

Kernel = Callable[..., jax.Array]
"""(q, k, v, start, end) -> mixed values; arguments as in `nextflow_jax.ops.attention.attend`."""


def sharded(
    kernel: Kernel,
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
) -> Float[Array, "B S H A"]:
    """`kernel` over the mesh of `logical_context`; called as it is outside it and on one device.

    Args:
      kernel: attention of whole rows, of any number of heads.
      q: queries.
      k: keys; as many as queries come split like them, a cache's are whole on every device of the context axis.
      v: values.
      start: first visible key of each query, counted over the whole row.
      end: after the last visible key of each query.

    Raises:
      UserError: rows, heads or positions that the mesh does not divide.
    """
    mesh, context = mesh_axes("sequence")
    if mesh is None or mesh.size == 1:
        return kernel(q, k, v, start, end)
    keys = "sequence" if k.shape[1] == q.shape[1] else None
    queries_spec = partition("queries", q, "batch", "sequence", "heads", None)
    keys_spec = partition("keys", k, "batch", keys, "kv_heads", None)
    ranges_spec = partition("attend_start", start, "batch", "sequence")

    def on_one_device(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        if keys and context:
            k, v = (lax.all_gather(x, context, axis=1, tiled=True) for x in (k, v))
        return kernel(q, k, v, start, end)

    specs = (queries_spec, keys_spec, keys_spec, ranges_spec, ranges_spec)
    # Pallas kernels do not say over which axes their results vary, so this is not checked.
    mapped = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=queries_spec, check_vma=False)
    return mapped(q, k, v, start, end)
