"""All metrics of a step as one array: fetching some hundred scalars one by one takes longer than the rest of a log."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nextflow_jax.training.task import Metrics


@flax.struct.dataclass
class PackedMetrics:
    """(sum, weight) of every metric."""

    values: Float[Array, "metrics 2"] | jax.ShapeDtypeStruct
    """The latter of a step that is not run yet."""
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    """Of the rows."""

    @classmethod
    def of(cls, metrics: Metrics) -> "PackedMetrics":
        """Those of a step, float32."""
        names = tuple(sorted(metrics))
        scalars = [jnp.asarray(value, jnp.float32) for name in names for value in metrics[name]]
        return cls(jnp.stack(scalars).reshape(-1, 2), names)

    def fetch(self) -> dict[str, tuple[float, float]]:
        """By name, on the host; waits for the step."""
        return dict(zip(self.names, map(tuple, np.asarray(self.values).tolist())))
