"""Start from published weights: a text model's arrays streamed into the layout, its tables grown to our vocabulary."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nextflow_jax.convert.flat import flatten_variables
from nextflow_jax.convert.mapping import Piece
from nextflow_jax.convert.placement import place
from nextflow_jax.convert.qwen2_5 import (
    TOKENS,
    Checkpoint,
    id_axes,
    open_checkpoint,
    stream_tower,
    text_part,
)
from nextflow_jax.convert.qwen2_5_config import CONFIG_FILE
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.embedding import Connector
from nextflow_jax.models.growth import code_rows, grow_rows
from nextflow_jax.text import HUGGING_FACE_FILE, TextTokenizer, load_text_tokenizer

PARAMS = "params/"
VISION_HEAD = "head/vision_kernel"
CODES = "embedding/codes"
CONNECTOR = "embedding/connector/"


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedStart:
    """A checkpoint that fits the new run's decoder; its arrays are read when the run has a place for them."""

    checkpoint: Checkpoint
    config: DecoderConfig
    origin: str
    """Which weights they are."""
    given: frozenset[str]
    """Names ("params/...") of the arrays that `apply` makes; others keep the values they have."""

    @property
    def count(self) -> int:
        """How many arrays it gives."""
        return len(self.given)

    def apply(self, variables: Any) -> Any:
        """The variables with the checkpoint's arrays in their places.

        Args:
          variables: by collection; arrays, but those in `given` are `jax.ShapeDtypeStruct`s with shardings.
        """
        flat = traverse_util.flatten_dict(variables, sep="/")
        targets = {name.removeprefix(PARAMS): flat[name] for name in self.given}
        placed = place(self._pieces(), targets)
        if self.checkpoint.ours is None:
            features = self._code_features(flat)
            placed |= {name: self._grown(name, placed, targets, features) for name in id_axes(self.config)}
            if VISION_HEAD in targets:
                placed[VISION_HEAD] = self._vision_head(placed, targets[VISION_HEAD], features)
        return traverse_util.unflatten_dict({**flat, **{PARAMS + name: placed[name] for name in targets}}, sep="/")

    def _pieces(self) -> Iterator[Piece]:
        """The checkpoint's arrays; where it is one that we wrote, with the rows that are ours and the rest of ours."""
        ours, axes = self.checkpoint.ours, id_axes(self.config)
        for piece in stream_tower(self.checkpoint, self.config):
            if ours is not None and piece.target in axes:
                whole = np.concatenate([piece.array, ours[piece.target]], axes[piece.target])
                piece = piece._replace(array=whole)
            yield piece
        for name in ours or ():
            if name not in axes:
                yield Piece(name, (), ours[name])

    def _grown(self, name: str, placed: Mapping[str, Any], targets: Mapping[str, Any], features: Any) -> jax.Array:
        axis, vocabulary, twins = id_axes(self.config)[name], self.config.vocabulary, self.checkpoint.tower.twins
        has_codes = self.config.head == "shared" or name == TOKENS

        def grow(table: jax.Array, features: jax.Array) -> jax.Array:
            rows = jnp.moveaxis(table, axis, 0)
            codes = code_rows(features, rows, vocabulary.text_size) if has_codes else None
            return jnp.moveaxis(grow_rows(rows, vocabulary, twins, codes), 0, axis)

        return jax.jit(grow, donate_argnums=0, out_shardings=targets[name].sharding)(placed[name], features)

    def _vision_head(self, placed: Mapping[str, Any], wanted: Any, features: Any) -> jax.Array:
        """A head of codes alone, on the scale of the text head; the columns of unused ids are zero."""
        name, axis = list(id_axes(self.config).items())[-1]

        def make(table: jax.Array, features: jax.Array) -> jax.Array:
            codes = code_rows(features, jnp.moveaxis(table, axis, 0), self.config.vocabulary.text_size)
            return jnp.pad(codes, [(0, wanted.shape[1] - len(codes)), (0, 0)]).T.astype(wanted.dtype)

        return jax.jit(make, out_shardings=wanted.sharding)(placed[name], features)

    def _code_features(self, flat: Mapping[str, Any]) -> jax.Array:
        """The codebook at the model's width [codes, D]: through the connector where its own width is another."""
        codes = flat[PARAMS + CODES][:, self.config.input_dims]
        if codes.shape[1] == self.config.width:
            return codes
        start = PARAMS + CONNECTOR
        connector = {name.removeprefix(start): value for name, value in flat.items() if name.startswith(start)}
        params = traverse_util.unflatten_dict(connector, sep="/")
        apply = jax.jit(lambda params, codes: Connector(self.config).apply({"params": params}, codes[None])[0])
        return apply(params, codes)


def load_published_start(
    folder: str, config: DecoderConfig, abstract: Any, tokenizer: TextTokenizer | None = None
) -> PublishedStart:
    """Opens and checks a Hugging Face folder; no array is read.

    Args:
      folder: `InitFromConfig.weights`.
      config: the new run's decoder.
      abstract: the new run's variables by collection, unboxed, as shapes.
      tokenizer: of the texts that the run trains on; None where it is not known.

    Raises:
      UserError: anything missing, corrupt, or of another shape than the decoder, or another tokenizer.
    """
    checkpoint = open_checkpoint(folder)
    stream_tower(checkpoint, config)
    if tokenizer is not None:
        check_tokenizer(checkpoint.folder, checkpoint.tower.text_size, tokenizer)
    given = set(flatten_variables(abstract["params"]))
    if checkpoint.ours is None:
        given &= {*flatten_variables(text_part(config)), VISION_HEAD}
    digest = hashlib.sha256((checkpoint.folder / CONFIG_FILE).read_bytes()).hexdigest()[:12]
    origin = f"{checkpoint.tower.model_type} weights {checkpoint.folder.name!r} (config {digest})"
    return PublishedStart(checkpoint, config, origin, frozenset(PARAMS + name for name in given))


def check_tokenizer(folder: pathlib.Path, text_size: int, tokenizer: TextTokenizer) -> None:
    """Refuses texts that were tokenized otherwise than those the checkpoint was trained on.

    Raises:
      UserError: the folder has another tokenizer, or a table with fewer rows than the tokenizer has ids.
    """
    file = folder / HUGGING_FACE_FILE
    theirs = load_text_tokenizer(file).fingerprint if file.is_file() else None
    if theirs not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{file}: fingerprint {theirs[:12]}, and the shards' texts were tokenized with "
            f"{tokenizer.fingerprint[:12]}; extract them again with config.text.path={folder}"
        )
    if tokenizer.size > text_size:
        raise UserError(
            f"{folder}: {text_size} token embeddings, and the shards' text tokenizer has {tokenizer.size} ids"
        )
