"""The decoder's configuration: every size and switch of the architecture, and the rules they keep."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from nextflow_jax.config import Fault, nearest
from nextflow_jax.models.remat import REMAT_POLICIES
from nextflow_jax.ops.attention import IMPLEMENTATIONS
from nextflow_jax.vocabulary import Vocabulary

DTYPES = ("float32", "bfloat16")
CONNECTORS = ("linear", "mlp")
HEADS = ("shared", "separate")
CODE_HALVES = ("both", "semantic", "pixel")
REMAT = ("none", *REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer with RMSNorm, SwiGLU, grouped heads and multi-scale 3D RoPE (recipe sections 1, 4).

    Sizes have no defaults: `nextflow_jax.models.presets` has tables of them.
    """

    vocabulary: Vocabulary
    code_dim: int
    """C, dimensions of a vision code (semantic and pixel halves together)."""
    max_scales: int
    """Largest scale index a row may hold: the longest schedule's K, one more where context blocks are fed."""
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rope_sections: tuple[int, int, int]
    """Frequencies (pairs of head dimensions) that turn with time, row and column, in this order from fast to slow."""
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    attention_bias: bool = False
    """Biases on queries, keys and values (Qwen2.5 has them), never on the output."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys before the rotation."""
    head: str = "shared"
    """"shared": one softmax over all ids; "separate": one head for text and specials, one for codes, each position's
    softmax over the ids of what it predicts alone (NextFlow's ablation, recipe section 1)."""
    tied_head: bool = False
    """The head is the token embedding, transposed; of separate heads, the text head alone."""
    connector: str = "linear"
    """From code features to the model's width: "linear", or "mlp" (one hidden layer of the model's width, GELU)."""
    code_halves: str = "both"
    """Which half of each code's features enters: "both", "semantic" or "pixel". What is predicted does not change."""
    semantic_dim: int = 0
    """How many of a code's first dimensions are its semantic half; needed unless both halves enter."""
    scale_embeddings: bool = True
    """A learned vector for each scale index, at vision positions."""
    scale_count_encoding: bool = True
    """A sinusoidal encoding of the number of scales, at <boi> and vision positions: tells the target resolution."""
    initializer_range: float = 0.02
    """Standard deviation of all kernels and embeddings at the start."""
    remat: str = "none"
    """What the backward pass computes again: "none", or a policy of nextflow_jax/models/remat.py."""
    scan_unroll: int = 1
    """Layers unrolled in each iteration of the layer scan: more compile time, less loop overhead."""
    dtype: str = "float32"
    """Compute dtype; norms, softmax, logits and losses are float32 in any case."""
    param_dtype: str = "float32"
    attention: str = "auto"
    """A name in `nextflow_jax.ops.attention.IMPLEMENTATIONS`, or "auto"."""

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as a dtype."""
        return jnp.dtype(self.dtype)

    @property
    def parameter_dtype(self) -> jnp.dtype:
        """`param_dtype` as a dtype."""
        return jnp.dtype(self.param_dtype)

    @property
    def input_dims(self) -> slice:
        """The dimensions of a code that enter."""
        halves = {"semantic": slice(self.semantic_dim), "pixel": slice(self.semantic_dim, None)}
        return halves.get(self.code_halves, slice(None))

    def faults(self) -> Iterator[Fault]:
        """The rules this architecture breaks."""
        positive = ("code_dim", "max_scales", "layers", "width", "heads", "kv_heads", "head_size", "mlp_width")
        for name in (*positive, "rope_base", "norm_eps", "scan_unroll"):
            if getattr(self, name) <= 0:
                yield Fault(name, getattr(self, name), "must be positive", "see nextflow_jax/models/presets.py")
        if self.kv_heads > 0 and self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            yield Fault("kv_heads", self.kv_heads, f"must divide heads = {self.heads}", f"use one of {divisors}")
        if min(self.rope_sections) < 0 or 2 * sum(self.rope_sections) != self.head_size:
            yield Fault(
                "rope_sections",
                self.rope_sections,
                f"must be three counts that sum to head_size / 2 = {self.head_size / 2:g}",
                "use about 1/4, 3/8, 3/8 of it, as Qwen2.5-VL's (16, 24, 24) for 64",
            )
        if self.code_halves in CODE_HALVES[1:] and not 0 < self.semantic_dim < self.code_dim:
            rule = f"code_halves = {self.code_halves!r} needs codes of two halves, 0 < semantic_dim < {self.code_dim}"
            yield Fault("semantic_dim", self.semantic_dim, rule, "use code_halves 'both' with a single codebook")
        if self.initializer_range < 0:
            yield Fault("initializer_range", self.initializer_range, "must not be negative", "use 0.02")
        choices = {
            "connector": CONNECTORS,
            "head": HEADS,
            "code_halves": CODE_HALVES,
            "remat": REMAT,
            "dtype": DTYPES,
            "param_dtype": DTYPES,
            "attention": ("auto", *IMPLEMENTATIONS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                fix = nearest(getattr(self, name), allowed)
                yield Fault(name, getattr(self, name), f"must be one of {', '.join(allowed)}", fix)
