"""The decoder as training runs it, without cache: what sampling is compared with."""

import functools

import jax
import numpy as np

from nextflow_jax import sequence
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.sequence import ImageSegment, TextSegment

LENGTH, DOCUMENTS = 128, 8
"""All calls are padded to these: one compiled program."""


@functools.cache
def _forward(config):
    return jax.jit(lambda variables, inputs: Decoder(config).apply(variables, inputs)[0])


def layout(bundle, segments):
    """The document's arrays, as training lays them out."""
    part = bundle.decoder
    accumulate = bundle.codec.accumulate if part.sequence.inputs == "accumulated" else None
    return sequence.flatten(segments, part.config.vocabulary, part.sequence, eos=False, accumulate=accumulate)


def logits(bundle, documents):
    """Teacher-forced logits of every position of every document, [documents, LENGTH, V]."""
    vocabulary = bundle.decoder.config.vocabulary
    rows = []
    for segments in [*documents, *documents[:1] * (DOCUMENTS - len(documents))]:
        row = sequence.pack_row([layout(bundle, segments)], LENGTH, vocabulary).arrays()
        if bundle.decoder.sequence.inputs == "accumulated":
            row.setdefault("vision_features", np.zeros((LENGTH, bundle.decoder.config.code_dim), np.float32))
        rows.append(row)
    inputs = DecoderInputs.of({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return np.asarray(_forward(bundle.decoder.config)(bundle.decoder.variables, inputs))[: len(documents)]


def text(bundle, words, condition=True):
    """A text segment."""
    return TextSegment(np.asarray(bundle.text_tokenizer.encode(words), np.int32), condition=condition)


def image(bundle, size, codes=None, picture=None, context=False):
    """An image segment, of codes or of a picture."""
    codes = bundle.codec.encode(picture[None])[0][0] if codes is None else codes
    return ImageSegment(bundle.codec.family.schedule(size), codes, codes, context_block=context)


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
