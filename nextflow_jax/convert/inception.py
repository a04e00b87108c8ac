"""Names in pytorch-fid's InceptionV3 file (torchvision's Inception3 names) <-> our parameters.

Our modules are called as the published ones, so a convolution with its norm, five arrays, is all there is to map. The
classifier `fc` is left out, for the FID compares what comes before it, and so are the norms' step counters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from nextflow_jax.convert.mapping import Row, read
from nextflow_jax.convert.transforms import CONV, SAME, Transform

PARTS: Mapping[str, tuple[str, Transform]] = {
    "kernel": ("conv.weight", CONV),
    "scale": ("bn.weight", SAME),
    "bias": ("bn.bias", SAME),
    "mean": ("bn.running_mean", SAME),
    "variance": ("bn.running_var", SAME),
}
"""Our array of a normalised convolution -> (the published one under the same module, transform)."""
CLASSIFIER = ("fc.weight", "fc.bias")
COUNTER = ".bn.num_batches_tracked"
"""What a norm's step counter ends with; files saved by old versions of torch have none."""


def inception_rows(expected: Mapping[str, Any]) -> tuple[Row, ...]:
    """One row an array of the parameter tree."""
    rows = []
    for *modules, part in flatten_dict(expected):
        suffix, transform = PARTS[part]
        rows.append(Row(".".join([*modules, suffix]), "/".join([*modules, part]), transform))
    return tuple(rows)


def read_inception(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The parameters of nextflow_jax/evals/inception.py from the arrays of the published file.

    Args:
      arrays: by their published names.
      expected: the parameter tree's shapes and dtypes.
      source: the file, for messages.

    Raises:
      UserError: lists every missing, unknown or mis-shaped array.
    """
    counters = tuple(name for name in arrays if name.endswith(COUNTER))
    return read(inception_rows(expected), arrays, expected, source, ignore=(*CLASSIFIER, *counters))
