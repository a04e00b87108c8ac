"""nextflow_jax: training and sampling of NextFlow-style unified text-image models in JAX.

Letters used in shape annotations and array-name suffixes across the package:

    B  batch (rows)            S  positions of a row        D  model width
    L  layers                  H  query heads               G  key-value heads (groups)
    A  head size               F  MLP hidden width          V  vocabulary entries
    K  scales of a schedule    N  codes of an image         T  source codes a gathered input mixes
    C  code dimension          Y  grid rows                 X  grid columns
    P  prompt positions        M  cache positions           E  text-encoder positions
"""

__version__ = "0.1.0"
