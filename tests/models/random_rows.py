"""Random packed rows of text and images, and tiny decoders to read them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from nextflow_jax.models.decoder import Decoder, DecoderConfig, DecoderInputs
from nextflow_jax.scales import make_schedule
from nextflow_jax.sequence import ImageSegment, Sequence, SequenceConfig, TextSegment, flatten, pack_row
from nextflow_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=30, codebook_size=12, pad_multiple=16)
SQUARE = make_schedule((3, 3), (1, 2, 3))
WIDE = make_schedule((2, 4), (1, 2, 4))
LAYOUT = SequenceConfig(rope_extent=8.0, scale_reweight=0.5, text_weight=0.7)


def text(rng, count, **flags):
    return TextSegment(rng.integers(0, VOCABULARY.text_size, count).astype(np.int32), **flags)


def image(rng, schedule, **flags):
    inputs, targets = rng.integers(0, VOCABULARY.codebook_size, (2, schedule.num_tokens)).astype(np.int32)
    return ImageSegment(schedule, inputs, targets, **flags)


def documents(seed) -> list[Sequence]:
    """Text to image; image to text with a context block; text alone; wide and square interleaved: 69 positions."""
    rng = np.random.default_rng(seed)
    segments = [
        [text(rng, 3, condition=True), image(rng, SQUARE)],
        [image(rng, WIDE, loss=False, context_block=True), text(rng, 2)],
        [text(rng, 4)],
        [text(rng, 1), image(rng, WIDE), text(rng, 2), image(rng, SQUARE)],
    ]
    return [flatten(parts, VOCABULARY, LAYOUT) for parts in segments]


def stack(rows: list[Sequence]) -> dict[str, jax.Array]:
    """The batch of these rows."""
    return {name: jnp.stack([row.arrays()[name] for row in rows]) for name in rows[0].arrays()}


def packed_batch(rows=2, length=96, seed=0) -> dict[str, jax.Array]:
    """Rows of all four kinds of documents, in another order each, with padding at the end."""
    packed = []
    for row in range(rows):
        parts = documents(seed + row)
        packed.append(pack_row(parts[row % 4 :] + parts[: row % 4], length, VOCABULARY))
    return stack(packed)


def tiny_config(**changes) -> DecoderConfig:
    """Two narrow layers with grouped heads; a large initial deviation, so that every part matters."""
    sizes = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 48}
    fields = {"rope_sections": (2, 1, 1), "rope_base": 100.0, "initializer_range": 0.2, **sizes, **changes}
    return DecoderConfig(vocabulary=VOCABULARY, code_dim=6, max_scales=4, **fields)


def make_decoder(config, seed=0):
    """A decoder and random variables, drawn here: quicker than `init`, and nothing is left at zero or one."""
    decoder = Decoder(config)
    boxed = jax.eval_shape(lambda: decoder.init(jax.random.key(0), DecoderInputs.zeros(1, 1, LAYOUT.taps)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, config.initializer_range, leaf.shape), leaf.dtype)

    return decoder, jax.tree_util.tree_map_with_path(draw, meta.unbox(boxed))
