"""What reaches what: every position's influence, documents in a packed row, and decoding with a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.models.cache import make_cache
from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.ops.cross_entropy.reference import token_losses
from nextflow_jax.sequence import pack_row
from tests.models import random_rows

CONFIG = random_rows.tiny_config()
DECODER, VARIABLES = random_rows.make_decoder(CONFIG)


def may_see(row):
    """Who may see whom, from the prose rule: one's own document, up to and including one's own scale (by its time).

    Time never falls within a document, and only the positions of one scale share theirs.
    """
    document, time = np.asarray(row["document"]), np.asarray(row["positions"])[:, 0]
    same = (document[:, None] == document[None]) & (document[:, None] > 0)
    return (same & (time[None] <= time[:, None])) | np.eye(len(document), dtype=bool)


def test_an_input_changes_exactly_the_outputs_that_may_see_it():
    """Covers causality of text, bidirectional scales, and documents and padding that never see one another."""
    row = random_rows.packed_batch(rows=1)
    length = row["tokens"].shape[1]

    def hidden_with_change_at(j):
        """Position `length` does not exist: nothing changes."""

        def change(values, size):
            return values.at[0, j].set((values[0, j] + 1) % size, mode="drop")

        changed = {
            **row,
            "tokens": change(row["tokens"], random_rows.VOCABULARY.text_size),
            "vision_ids": change(row["vision_ids"], random_rows.VOCABULARY.codebook_size),
        }
        return DECODER.apply(VARIABLES, DecoderInputs.of(changed), method="hidden")[0][0]

    hidden = np.asarray(jax.lax.map(hidden_with_change_at, jnp.arange(length + 1)))
    influence = np.abs(hidden[:-1] - hidden[-1]).max(-1).T
    single = {name: array[0] for name, array in row.items()}
    np.testing.assert_array_equal(influence > 1e-5, may_see(single))


def document_losses(batch, variables):
    """Weighted loss of every document on its own: [B, documents]."""
    logits, _ = DECODER.apply(variables, DecoderInputs.of(batch))
    weights = jax.nn.one_hot(batch["document"] - 1, 4) * batch["loss_weights"][..., None]
    sums = jnp.einsum("bsd,bs->bd", weights, token_losses(logits, batch["targets"]).cross_entropy)
    return sums / jnp.maximum(weights.sum(axis=1), 1e-9)


def test_packed_documents_have_the_losses_and_gradients_they_have_alone():
    documents = random_rows.documents(0)
    packed = random_rows.stack([pack_row(documents, 96, random_rows.VOCABULARY)])
    alone = random_rows.stack([pack_row([document], 96, random_rows.VOCABULARY) for document in documents])
    mix = jnp.asarray([0.5, 1.0, 2.0, 0.7])

    def of_packed(variables):
        losses = document_losses(packed, variables)[0]
        return losses @ mix, losses

    def of_alone(variables):
        losses = document_losses(alone, variables)[:, 0]
        return losses @ mix, losses

    (_, got), got_gradient = jax.jit(jax.value_and_grad(of_packed, has_aux=True))(VARIABLES)
    (_, expected), expected_gradient = jax.jit(jax.value_and_grad(of_alone, has_aux=True))(VARIABLES)
    assert np.asarray(expected).min() > 0.5
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got_gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def pieces_of(document):
    """Where a document's pieces begin, as the sampler feeds them: each text token alone, each scale whole."""
    time = document.positions[:, 0]
    return [0, *(np.flatnonzero(np.diff(time)) + 1), len(time)]


def piece_of(document, piece, width, shift):
    """The arrays of one piece, filled up to `width` positions that see nothing; past the last piece, only those."""
    edges = pieces_of(document)
    begin, end = (edges[piece], edges[piece + 1]) if piece + 1 < len(edges) else (len(document), len(document))
    arrays = {}
    for name, array in document.arrays().items():
        moved = array[begin:end] + (shift if name.startswith("attend") else 0)
        arrays[name] = np.pad(moved, [(0, width - (end - begin)), *[(0, 0)] * (array.ndim - 1)]).astype(array.dtype)
    return arrays, end - begin


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_forward():
    """Different documents in one batch, each behind some slots of rubbish, each piece of its own length."""
    documents, width = random_rows.documents(5), 9
    shift = np.arange(len(documents))
    packed = random_rows.stack([pack_row([document], 40, random_rows.VOCABULARY) for document in documents])
    expected = jax.jit(lambda inputs: DECODER.apply(VARIABLES, inputs)[0])(DecoderInputs.of(packed))

    cache = make_cache(CONFIG, rows=len(documents), slots=55).rewind(jnp.asarray(shift, jnp.int32))
    cache = cache._replace(keys=cache.keys + 7.0, values=cache.values - 3.0)
    step = jax.jit(lambda inputs, cache: DECODER.apply(VARIABLES, inputs, cache))
    outputs = [[] for _ in documents]
    for number in range(max(len(pieces_of(document)) for document in documents)):
        pieces = [piece_of(document, number, width, s) for document, s in zip(documents, shift, strict=True)]
        batch = {name: jnp.stack([arrays[name] for arrays, _ in pieces]) for name in pieces[0][0]}
        before = cache.length
        logits, cache = step(DecoderInputs.of(batch), cache)
        np.testing.assert_array_equal(cache.length, before + width)
        cache = cache.rewind(before + jnp.asarray([size for _, size in pieces], jnp.int32))
        for row, (_, size) in enumerate(pieces):
            outputs[row].append(logits[row, :size])
    for row, document in enumerate(documents):
        assert cache.length[row] == shift[row] + len(document)
        np.testing.assert_allclose(jnp.concatenate(outputs[row]), expected[row, : len(document)], atol=1e-4)
