"""What both halves of a guided batch share is read once, and the caches are as if each had been read in full."""

import jax
import numpy as np
import pytest

from nextflow_jax import sequence
from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.sampling.phases import make_phases
from nextflow_jax.sampling.prefill import split_halves
from nextflow_jax.sampling.steps import ScaleFeatures
from nextflow_jax.sampling.weights import Weights
from tests import tiny_models
from tests.sampling import plain

SQUARE, WIDE = tiny_models.FAMILY.sizes
WIDTH, SLOTS = 64, 96


def halves(bundle, documents):
    """Padded inputs, lengths and times of documents with the condition, then without it."""
    layouts = [plain.layout(bundle, document) for document in documents]
    layouts += [plain.layout(bundle, sequence.drop_condition(document)) for document in documents]
    vocabulary, width = bundle.decoder.config.vocabulary, bundle.decoder.config.code_dim
    rows = [sequence.pack_row([layout], WIDTH, vocabulary).arrays() for layout in layouts]
    if bundle.decoder.sequence.inputs == "accumulated":
        for row in rows:
            row.setdefault("vision_features", np.zeros((WIDTH, width), np.float32))
    inputs = DecoderInputs.of({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    time = np.asarray([layout.positions[-1, 0] + 1 for layout in layouts], np.float32)
    return inputs, np.asarray([len(layout) for layout in layouts], np.int32), time


def only(inputs, rows):
    return jax.tree.map(lambda array: array[rows], inputs)


def documents(bundle):
    """Drawing from a text, editing with the picture first, editing with it last, and a text between two pictures."""
    first, second = (
        plain.image(bundle, size, picture=tiny_models.picture(i, size)) for i, size in enumerate([SQUARE] * 2)
    )
    text = plain.text(bundle, "make it blue")
    return [[text], [first, text], [text, second], [first, text, second]]


def test_only_what_the_unguided_prompts_add_is_left_to_read():
    bundle = tiny_models.bundle()
    inputs, length, _ = halves(bundle, documents(bundle))
    guided, rest = split_halves(inputs, length)
    image = sequence.image_positions(bundle.codec.family.schedule(SQUARE))
    assert np.array_equal(guided.tokens, inputs.tokens[:4])
    assert rest.start.tolist() == [1, 1 + image, 1, 1 + image]
    assert rest.inputs.tokens.shape == (4, 16)
    assert np.array_equal(rest.inputs.tokens[2, :image], inputs.tokens[6, 1 : 1 + image])
    assert np.array_equal(rest.inputs.attend_end[3, :image], inputs.attend_end[7, 1 + image : 1 + 2 * image])
    alone, nothing = split_halves(only(inputs, [0, 1, 4, 5]), length[[0, 1, 4, 5]])
    assert nothing is None and len(alone.tokens) == 2


def test_a_scale_that_differs_is_not_cut():
    """The positions before the difference see those after it: their block is not shared."""
    bundle = tiny_models.bundle()
    codes = np.zeros(14, np.int32)
    other = codes.copy()
    other[4] = 3  # the last of the 2x2 scale: the input of the last cells of scale 3
    inputs, length, _ = halves(
        bundle, [[plain.image(bundle, SQUARE, codes=codes)], [plain.image(bundle, SQUARE, codes=other)]]
    )
    _, rest = split_halves(only(inputs, [0, 1]), length[:2])
    assert rest.start.tolist() == [1 + 1 + 4], "<bos>, <boi>, and the four positions of scale 2"


@pytest.mark.parametrize("kind", ["residual", "accumulated"])
def test_caches_are_those_of_reading_everything(kind):
    bundle = tiny_models.bundle(inputs=kind)
    part, features = bundle.decoder, None
    if kind == "accumulated":
        features = ScaleFeatures(bundle.codec.codebook, bundle.codec.refinement)
    weights, phases = Weights(part.variables, features), make_phases(part.config, part.sequence)
    inputs, length, time = halves(bundle, documents(bundle))
    whole = phases.read_prompt(weights, inputs, length, time, slots=SLOTS, guided=False)
    shared = phases.read_prompt(weights, inputs, length, time, slots=SLOTS, guided=True)
    assert shared.cache.capacity == whole.cache.capacity == SLOTS
    assert shared.length.tolist() == whole.length.tolist() == length.tolist()
    assert np.array_equal(shared.time, time)
    np.testing.assert_allclose(shared.last, whole.last[:4], atol=1e-5)
    real = (np.arange(SLOTS) < length[:, None])[None, :, None, :, None]
    for ours, theirs in zip(shared.cache[:2], whole.cache[:2]):
        np.testing.assert_allclose(np.where(real, ours, 0), np.where(real, theirs, 0), atol=1e-5)
        assert np.abs(np.where(real, ours, 0)).max() > 0.1
