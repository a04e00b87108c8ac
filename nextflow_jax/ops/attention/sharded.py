"""Runs an attention kernel on every device's part of a sharded batch: what XLA cannot partition, it need not.

Rows lie on the batch axes, heads on the tensor axis and positions on the context axis of the mesh. Over the context
axis, keys and values of a row are gathered, since ranges count all the row's keys; the backward pass scatters their
gradients back. With grouped heads that is little, 2 G A numbers a key and layer. A ring of key blocks would move as
many and hold fewer, but its devices would wait at every step for the one whose block has most visible pairs.

Queries stay where they are but for one exchange. Late positions of a causal row see more than early ones, up to twice
the mean, so each device hands its two halves over for a pair from both ends of the row and gets their results back
(the zigzag order of Llama 3's context parallelism, arXiv 2407.21783, section 3.3.2, inside attention alone: everywhere
else positions keep their order). That moves 2 H A numbers a query and layer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
        if not context:
            return kernel(q, k, v, start, end)
        if keys:
            k, v = (lax.all_gather(x, context, axis=1, tiled=True) for x in (k, v))
        if q.shape[1] % 2:
            return kernel(q, k, v, start, end)
        q, start, end = (_exchange(x, context) for x in (q, start, end))
        return _exchange(kernel(q, k, v, start, end), context, back=True)

    specs = (queries_spec, keys_spec, keys_spec, ranges_spec, ranges_spec)
    # Pallas kernels do not say over which axes their results vary, so this is not checked.
    mapped = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=queries_spec, check_vma=False)
    return mapped(q, k, v, start, end)


def computed_by(parts: int) -> list[int]:
    """For each half of each of `parts` equal parts of a row, in their order, the part whose device attends for it.

    Device p gets half p and the p-th half from the end: together they see as much as any other pair in a causal row.
    """
    return [min(half, 2 * parts - 1 - half) for half in range(2 * parts)]


def _exchange(x: jax.Array, context: tuple[str, ...], *, back: bool = False) -> jax.Array:
    """Sends both halves of this device's positions to the devices that attend for them, or back from there."""
    place = computed_by(lax.axis_size(context))

    def send(half: jax.Array, which: int) -> jax.Array:
        routes = list(enumerate(place[which::2]))
        return lax.ppermute(half, context, [(there, here) for here, there in routes] if back else routes)

    first, second = jnp.split(x, 2, axis=1)
    return jnp.concatenate([send(first, 0), send(second, 1)], axis=1)
