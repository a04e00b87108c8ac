"""The compiled phases of sampling: read the prompt, write text, draw a picture, close it.

Every phase runs all rows of a batch; rows that are not in it ("inactive") are computed along and left as they were. A
row's draws use its own key folded with its own length, so nothing else in the batch can change them.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from nextflow_jax.models.cache import KVCache, join, make_cache
from nextflow_jax.models.decoder import Decoder, DecoderConfig, DecoderInputs
from nextflow_jax.models.head import logits_of
from nextflow_jax.sampling.filters import in_parts, sample
from nextflow_jax.sampling.guidance import both_halves, combine
from nextflow_jax.sampling.prefill import Remainder, split_halves
from nextflow_jax.sampling.steps import (
    Rows,
    accumulated_inputs,
    keep_inactive,
    scale_inputs,
    token_inputs,
)
from nextflow_jax.sampling.weights import Weights
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.sequence import SequenceConfig, scale_layout

REACH_STEP = 128
"""Slots that a scale reads are a multiple of this, which attention kernels want."""

LOGITS_AT_ONCE = 2**22
"""Of one row: 256 cells of 16,384 codes. Larger scales are drawn part by part, so no [cells, codes] logits exist."""

OPEN_IMAGE, END = 1, 2
"""Why a row stopped writing text: it opened a picture or ended the document. 0: it met a limit."""


class Draws(NamedTuple):
    """Settings of the draws of every request, per scale for pictures (K = 1 for text)."""

    key: Key[Array, "B"]
    guidance: Float[Array, "B K"]
    temperature: Float[Array, "B K"]
    top_k: Float[Array, "B K"]
    top_p: Float[Array, "B K"]

    def at(self, k: int) -> "Draws":
        """The settings of scale k (from 0) alone."""
        fields = ("guidance", "temperature", "top_k", "top_p")
        return self._replace(**{name: getattr(self, name)[:, k : k + 1] for name in fields})


class TextLimits(NamedTuple):
    """How far every request may write."""

    tokens: Int[Array, "B"]
    """Text tokens left to write; 0: the row is inactive."""
    open_until: Int[Array, "B"]
    """The longest length at which a picture may still be opened; -1: none may."""
    end: Int[Array, "B"]
    """An id that ends the text as `<eos>` does; that of `<eos>` for none."""
    text_ids: Int[Array, ""]
    """Text ids below this mean something to the tokenizer; a table from published weights may have more rows."""


class Text(NamedTuple):
    """What `write_text` wrote: unified ids, a closing `<boi>`, `<eos>` or other end included."""

    tokens: Int[Array, "B tokens"]
    log_probs: Float[Array, "B tokens"]
    count: Int[Array, "B"]
    stop: Int[Array, "B"]


class Drawing(NamedTuple):
    """A picture between two of its scales."""

    codes: Int[Array, "B n"]
    """Of the scale drawn last."""
    accumulated: Float[Array, "R Y X C"] | None
    """With accumulated inputs, the feature map of the scales before it; None before the second scale."""


class Phases:
    """The phases of one decoder, compiled. Rows are donated: a phase's result replaces its argument."""

    def __init__(self, config: DecoderConfig, sequence: SequenceConfig) -> None:
        self._config = config
        self._sequence = sequence
        self._vocabulary = config.vocabulary
        self._decoder = Decoder(config)
        self._prefill = jax.jit(self._read_halves, static_argnames=("slots",))
        self.write_text = jax.jit(self._write_text, static_argnames=("space",), donate_argnames=("rows",))
        self._prepared: set[tuple[Any, ...]] = set()
        self.draw_scale = jax.jit(self._draw_scale, static_argnames=("schedule", "k"), donate_argnames=("rows",))
        self.close_image = jax.jit(self._close_image, donate_argnames=("rows",))

    def read_prompt(
        self,
        weights: Weights,
        inputs: DecoderInputs,
        length: Int[np.ndarray, "R"],
        time: Float[np.ndarray, "R"],
        slots: int,
        guided: bool,
    ) -> Rows:
        """Prefill: the prompts of all rows, padded to one length, into a new cache.

        What the unguided half shares with the guided one is read once.

        Args:
          weights: of the decoder.
          inputs: of all rows as NumPy, guided half first.
          length: positions of each prompt.
          time: of each row's next position.
          slots: positions of the cache; at least the padded prompts' length.
          guided: whether there is an unguided half.
        """
        inputs, remainder = split_halves(inputs, length) if guided else (inputs, None)
        return self._prefill(weights, inputs, remainder, length, time, slots=slots)

    def _read_halves(
        self,
        weights: Weights,
        inputs: DecoderInputs,
        remainder: Remainder | None,
        length: Int[Array, "R"],
        time: Float[Array, "R"],
        slots: int,
    ) -> Rows:
        """Reads into a cache no longer than the prompts, then copies it into one of `slots` positions."""
        batch, width = inputs.tokens.shape
        room = width if remainder is None else width + remainder.inputs.tokens.shape[1]
        hidden, cache = self._hidden(weights, inputs, make_cache(self._config, batch, room), reach=width)
        last = jnp.take_along_axis(hidden, (length[:batch] - 1)[:, None, None], axis=1)[:, 0]
        halves = [cache]
        if len(length) > batch:
            unguided = cache
            if remainder is not None:
                _, unguided = self._hidden(weights, remainder.inputs, cache.rewind(remainder.start))
            halves.append(unguided)
        return Rows(cache=join(halves, slots).rewind(length), time=time, last=last)

    def _write_text(
        self, weights: Weights, rows: Rows, draws: Draws, limits: TextLimits, space: int
    ) -> tuple[Rows, Text]:
        """Text, token by token, until every active row has opened a picture, ended, or met its limit.

        Args:
          weights: of the decoder.
          rows: where the rows stand.
          draws: text settings, K = 1; guidance does not apply to text.
          limits: how far each request may write.
          space: columns of the buffers; above the largest limit by at least one, for the closing special.
        """
        batch = len(rows.last)
        active = limits.tokens > 0
        empty = Text(
            tokens=jnp.zeros((batch, space), jnp.int32),
            log_probs=jnp.zeros((batch, space), jnp.float32),
            count=jnp.zeros(batch, jnp.int32),
            stop=jnp.zeros(batch, jnp.int32),
        )
        # Converted once: within the loop, a head of float32 weights would be at every token.
        head = self._head(weights, Decoder.text_head).astype(self._config.compute_dtype)

        def unfinished(carry: tuple[Rows, Text, Array]) -> Array:
            return jnp.any(carry[2])

        def write_one(carry: tuple[Rows, Text, Array]) -> tuple[Rows, Text, Array]:
            rows, text, active = carry
            tokens, log_probs = self._draw_text(head, rows, draws, limits)
            column = jnp.where(active, text.count, space)
            row = jnp.arange(batch)
            stop = jnp.where(tokens == self._vocabulary.boi, OPEN_IMAGE, 0)
            stop = jnp.where((tokens == self._vocabulary.eos) | (tokens == limits.end), END, stop)
            text = Text(
                tokens=text.tokens.at[row, column].set(tokens, mode="drop"),
                log_probs=text.log_probs.at[row, column].set(log_probs, mode="drop"),
                count=text.count + active,
                stop=jnp.where(active, stop, text.stop),
            )
            active = active & (stop == 0)
            rows = self._feed_token(weights, rows, tokens, active)
            return rows, text, active & (text.count < limits.tokens)

        rows, text, _ = jax.lax.while_loop(unfinished, write_one, (rows, empty, active))
        return rows, text

    def draw_image(
        self, weights: Weights, rows: Rows, draws: Draws, active: Bool[Array | np.ndarray, "B"], schedule: ScaleSchedule
    ) -> tuple[Rows, Int[Array, "B N"], Float[Array, "B N"]]:
        """`<boi>` and every scale of a picture; codes and their log-probabilities. `<eoi>` is not fed yet.

        A call of `draw_scale` a scale: programs of one scale each compile side by side, and streaming shares them.

        Args:
          weights: of the decoder.
          rows: where the rows stand; donated.
          draws: picture settings, one column a scale of `schedule`.
          active: the requests that draw a picture of this schedule.
          schedule: its grids.
        """
        self.prepare_image(weights, rows, draws, active, schedule)
        all_codes, all_log_probs, drawing = [], [], None
        for k in range(schedule.num_scales):
            rows, drawing, log_probs = self.draw_scale(weights, rows, drawing, draws, active, schedule=schedule, k=k)
            all_codes.append(drawing.codes)
            all_log_probs.append(log_probs)
        return rows, jnp.concatenate(all_codes, axis=1), jnp.concatenate(all_log_probs, axis=1)

    def prepare_image(
        self, weights: Weights, rows: Rows, draws: Draws, active: Bool[Array | np.ndarray, "B"], schedule: ScaleSchedule
    ) -> None:
        """Compiles the programs of all scales at once, on all cores, if these shapes are new. Arguments as there."""
        shapes = (schedule, len(active), rows.cache.keys.shape)
        if shapes in self._prepared:
            return
        self._prepared.add(shapes)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for k in range(schedule.num_scales):
                drawing = self._drawing_before(weights, rows, schedule, k, len(active))
                lowered = self.draw_scale.lower(weights, rows, drawing, draws, active, schedule=schedule, k=k)
                pool.submit(lowered.compile)

    def _drawing_before(
        self, weights: Weights, rows: Rows, schedule: ScaleSchedule, k: int, batch: int
    ) -> Drawing | None:
        """The shapes of what scale k is drawn from."""
        if k == 0:
            return None
        codes, accumulated = jax.ShapeDtypeStruct((batch, schedule.counts[k - 1]), jnp.int32), None
        if weights.features is not None and k > 1:
            codebook = weights.features.codebook
            shape = (len(rows.time), *schedule.final_grid, codebook.shape[1])
            accumulated = jax.ShapeDtypeStruct(shape, codebook.dtype)
        return Drawing(codes, accumulated)

    def _draw_scale(
        self,
        weights: Weights,
        rows: Rows,
        drawing: Drawing | None,
        draws: Draws,
        active: Bool[Array, "B"],
        schedule: ScaleSchedule,
        k: int,
    ) -> tuple[Rows, Drawing, Float[Array, "B n"]]:
        """One scale of a picture; its codes are those of the new `Drawing`. Scales are drawn in order, from 0.

        Args:
          weights: of the decoder.
          rows: where the rows stand; donated.
          drawing: what the scale before gave; None for scale 0, which `<boi>` begins.
          draws: picture settings, one column a scale of `schedule`.
          active: the requests that draw a picture of this schedule.
          schedule: its grids.
          k: the scale, from 0.
        """
        guided = len(rows.time) > len(active)
        active_R = both_halves(active, guided)
        inputs, accumulated = self._picture_inputs(weights, rows, drawing, schedule, k, guided)
        # The picture fits into the cache: what is left after its finer scales is all that this one can see.
        reach = rows.cache.capacity - sum(schedule.counts[k + 1 :])
        hidden, cache = self._hidden(weights, inputs, rows.cache, -(-reach // REACH_STEP) * REACH_STEP)
        rows = rows._replace(cache=keep_inactive(cache, rows.cache, active_R))
        head = self._head(weights, Decoder.vision_head)
        codes, log_probs = self._draw_codes(head, hidden, rows, draws.at(k), guided)
        if k + 1 == schedule.num_scales:
            rows = rows._replace(time=jnp.where(active_R, rows.time + schedule.num_scales, rows.time))
        return rows, Drawing(codes, accumulated), log_probs

    def _picture_inputs(
        self,
        weights: Weights,
        rows: Rows,
        drawing: Drawing | None,
        schedule: ScaleSchedule,
        k: int,
        guided: bool,
    ) -> tuple[DecoderInputs, Float[Array, "R Y X C"] | None]:
        """The decoder's inputs of scale k, and the map of the coarser scales where inputs are accumulated."""
        if k == 0:
            tokens = jnp.full(len(rows.time), self._vocabulary.boi, jnp.int32)
            return token_inputs(rows, tokens, schedule.num_scales, self._sequence, weights.features), None
        codes_R, accumulated, features = both_halves(drawing.codes, guided), None, None
        if weights.features is not None:
            accumulated, features = accumulated_inputs(weights.features, schedule, k - 1, drawing.accumulated, codes_R)
        layout = scale_layout(schedule, k + 1, self._sequence)
        return scale_inputs(rows, layout, self._vocabulary.pad, codes_R, features), accumulated

    def _close_image(self, weights: Weights, rows: Rows, active: Bool[Array, "B"]) -> Rows:
        """Feeds `<eoi>`, after which text may go on."""
        return self._feed_token(weights, rows, jnp.full(len(active), self._vocabulary.eoi, jnp.int32), active)

    def _hidden(
        self, weights: Weights, inputs: DecoderInputs, cache: KVCache, reach: int | None = None
    ) -> tuple[Float[Array, "R S D"], KVCache]:
        """Hidden states and the cache after them; `reach`: slots that any position may see, None for all."""
        reach = cache.capacity if reach is None else min(reach, cache.capacity)
        # Rows that are not in the phase may stand too far on to fit; nobody looks at what they see.
        inputs = inputs._replace(attend_end=jnp.minimum(inputs.attend_end, reach))
        hidden, after = self._decoder.apply(weights.decoder, inputs, cache.reaching(reach), method=Decoder.hidden)
        return hidden, after.reaching(cache.capacity)

    def _head(self, weights: Weights, part: Callable[..., Array]) -> Float[Array, "D V"]:
        return self._decoder.apply(weights.decoder, method=part)

    def _feed_token(self, weights: Weights, rows: Rows, tokens: Int[Array, "B"], active: Bool[Array, "B"]) -> Rows:
        """One token a row, the same in both halves."""
        guided = len(rows.time) > len(tokens)
        active_R = both_halves(active, guided)
        inputs = token_inputs(rows, both_halves(tokens, guided), 0, self._sequence, weights.features)
        hidden, cache = self._hidden(weights, inputs, rows.cache)
        return Rows(
            cache=keep_inactive(cache, rows.cache, active_R),
            time=jnp.where(active_R, rows.time + 1, rows.time),
            last=jnp.where(active[:, None], hidden[: len(tokens), 0], rows.last),
        )

    def _draw_text(
        self, head: Float[Array, "D V"], rows: Rows, draws: Draws, limits: TextLimits
    ) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
        """The next token of every request: text, `<eos>`, or `<boi>` where a picture may be opened."""
        vocabulary = self._vocabulary
        length = rows.length[: len(rows.last)]
        logits = logits_of(rows.last[:, None], head)
        ids = jnp.arange(vocabulary.vision_offset)
        may_open = (length <= limits.open_until)[:, None, None]
        allowed = (ids < limits.text_ids) | (ids == vocabulary.eos) | ((ids == vocabulary.boi) & may_open)
        logits = jnp.where(allowed, logits, -jnp.inf)
        key = _keys_at(draws.key, length)
        tokens, log_probs = sample(key, logits, draws.temperature, draws.top_k, draws.top_p)
        return tokens[:, 0], log_probs[:, 0]

    def _draw_codes(
        self, head: Float[Array, "D V"], hidden: Float[Array, "R S D"], rows: Rows, draws: Draws, guided: bool
    ) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
        """The codes of one scale; `draws` holds the settings of this scale alone."""
        key = _keys_at(draws.key, rows.length[: len(draws.key)])

        def draw(hidden: Float[Array, "R n D"], key: Key[Array, "B"]) -> tuple[Int[Array, "B n"], Float[Array, "B n"]]:
            logits = combine(logits_of(hidden, head), draws.guidance[:, 0], guided)
            settings = (
                jnp.broadcast_to(values, logits.shape[:2]) for values in (draws.temperature, draws.top_k, draws.top_p)
            )
            return sample(key, logits, *settings)

        return in_parts(draw, hidden, key, LOGITS_AT_ONCE // head.shape[1])


@functools.cache
def make_phases(config: DecoderConfig, sequence: SequenceConfig) -> Phases:
    """The phases of a configuration; samplers with other weights of the same one share the compiled programs."""
    return Phases(config, sequence)


@functools.partial(jax.vmap, in_axes=(0, 0))
def _keys_at(key: Key[Array, ""], length: Int[Array, ""]) -> Key[Array, ""]:
    """A request's key at a length: no two draws of a row happen at the same one."""
    return jax.random.fold_in(key, length)
