"""Qwen2, Qwen2.5 and the language tower of Qwen2.5-VL under Hugging Face's names, into `Decoder` and back.

Of our arrays theirs make the layers, the last norm and the text rows of token table and head. What a text model has no
names for (codes, connector, scale embeddings, the rows of specials and codes) goes to a file of its own beside theirs,
`nextflow.safetensors`, under our names, so that a folder that we wrote comes back bit for bit and others can load the
rest of it. The vision tower of Qwen2.5-VL, `visual.*`, is an intended gap: the vision tokenizer takes its place.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from nextflow_jax.convert.flat import flatten_variables, unflatten_variables
from nextflow_jax.convert.mapped_files import MappedArrays
from nextflow_jax.convert.mapping import Piece, Row, matches, stream
from nextflow_jax.convert.qwen2_5_config import Tower, check_tower, read_tower
from nextflow_jax.convert.transforms import HEADS_BIAS, HEADS_IN, HEADS_OUT, LINEAR
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.decoder_config import DecoderConfig

OURS_FILE = "nextflow.safetensors"

TOKENS = "embedding/tokens"
PREFIXES = ("model.", "model.language_model.", "language_model.model.")
"""What the tower's names begin with: text models and the vision-language checkpoints as published; as transformers 4.52
and later name their modules; as it was in between."""
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
VISION_PATTERNS = ("visual.*", "model.visual.*")
SPARE_PATTERNS = (*VISION_PATTERNS, "*.rotary_emb.inv_freq")
"""Published arrays that are left out on purpose."""


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A folder, opened: headers are read, arrays are not."""

    folder: pathlib.Path
    tower: Tower
    arrays: MappedArrays
    ours: MappedArrays | None
    """What `nextflow.safetensors` holds; None where there is no such file."""
    prefix: str
    """One of PREFIXES."""

    @property
    def head(self) -> str:
        """The name of the output head."""
        return next((name for name in HEADS if name in self.arrays), HEADS[0])


def open_checkpoint(folder: str | pathlib.Path) -> Checkpoint:
    """Opens the folder of a checkpoint.

    Raises:
      UserError: no such folder, another architecture, files that are missing, truncated or corrupt.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give that of a Hugging Face checkpoint, with its config.json")
    tower = read_tower(folder)
    arrays = MappedArrays(folder)
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}embed_tokens.weight" in arrays), None)
    if prefix is None:
        names = ", ".join(f"{prefix}embed_tokens.weight" for prefix in PREFIXES)
        raise UserError(f"{folder}: no token embedding under any known name ({names}); it is no causal language model")
    own = folder / OURS_FILE
    return Checkpoint(folder, tower, arrays, MappedArrays(own) if own.is_file() else None, prefix)


def stream_tower(checkpoint: Checkpoint, config: DecoderConfig) -> Iterator[Piece]:
    """The tower's arrays one at a time, under the names of a decoder's "params".

    The token table comes with its text rows alone, and the head with its text columns.

    Raises:
      UserError: the decoder is of another shape, or arrays are missing, unknown or mis-shaped; all in one message.
    """
    check_tower(checkpoint.tower, config, str(checkpoint.folder))
    if checkpoint.ours is not None:
        _check_ours(checkpoint.ours, config, checkpoint.folder / OURS_FILE)
    spare = (*SPARE_PATTERNS, checkpoint.head) if config.tied_head else SPARE_PATTERNS
    ignore = [pattern for pattern in spare if any(matches(pattern, name) is not None for name in checkpoint.arrays)]
    rows = tower_rows(config, checkpoint.prefix, checkpoint.head)
    return stream(rows, checkpoint.arrays, text_part(config), str(checkpoint.folder), ignore)


def tower_rows(config: DecoderConfig, prefix: str = PREFIXES[0], head: str = HEADS[0]) -> tuple[Row, ...]:
    """The table of the tower; `prefix` and `head` as in the file."""
    layer, ours = f"{prefix}layers.{{layer}}", "layers"
    rows = [
        Row(f"{prefix}embed_tokens.weight", TOKENS),
        Row(f"{prefix}norm.weight", "final_norm/scale"),
        Row(f"{layer}.input_layernorm.weight", f"{ours}/attention_norm/scale"),
        Row(f"{layer}.post_attention_layernorm.weight", f"{ours}/mlp_norm/scale"),
        Row(f"{layer}.self_attn.o_proj.weight", f"{ours}/attention/out/kernel", HEADS_OUT),
    ]
    for letter, name in zip("qkv", ("query", "key", "value")):
        rows.append(Row(f"{layer}.self_attn.{letter}_proj.weight", f"{ours}/attention/{name}/kernel", HEADS_IN))
        rows.append(Row(f"{layer}.self_attn.{letter}_proj.bias", f"{ours}/attention/{name}/bias", HEADS_BIAS))
    for name in ("gate", "up", "down"):
        rows.append(Row(f"{layer}.mlp.{name}_proj.weight", f"{ours}/mlp/{name}/kernel", LINEAR))
    return tuple(rows) if config.tied_head else (*rows, Row(head, text_head(config), LINEAR))


def text_head(config: DecoderConfig) -> str:
    """Flat name of the array whose first columns score text; a tied one is the token table."""
    if config.tied_head:
        return TOKENS
    return "head/text_kernel" if config.head == "separate" else "head/kernel"


def abstract_params(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The decoder's parameters by flat name, as shapes."""
    init = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    return flatten_variables(init["params"])


def text_part(config: DecoderConfig) -> dict[str, Any]:
    """What the tower fills: the shapes of its parameters, tables cut to their text rows."""
    shapes = {}
    for name, leaf in abstract_params(config).items():
        if name in id_axes(config):
            shapes[name] = _resized(leaf, id_axes(config)[name], config.vocabulary.text_size)
        elif name.split("/")[0] in ("layers", "final_norm"):
            shapes[name] = leaf
    return unflatten_variables(shapes)


def own_part(config: DecoderConfig) -> dict[str, Any]:
    """What `nextflow.safetensors` holds: all that the tower does not fill, tables cut to their other rows."""
    shapes, filled = {}, flatten_variables(text_part(config))
    for name, leaf in abstract_params(config).items():
        if name in id_axes(config):
            axis = id_axes(config)[name]
            shapes[name] = _resized(leaf, axis, leaf.shape[axis] - config.vocabulary.text_size)
        elif name not in filled:
            shapes[name] = leaf
    return unflatten_variables(shapes)


def id_axes(config: DecoderConfig) -> Mapping[str, int]:
    """Arrays with an entry for each id of text: flat name -> the axis of the ids."""
    return {TOKENS: 0} if config.tied_head else {TOKENS: 0, text_head(config): 1}


def _check_ours(ours: MappedArrays, config: DecoderConfig, file: pathlib.Path) -> None:
    wanted, faults = flatten_variables(own_part(config)), []
    for name in sorted(wanted.keys() | ours.keys()):
        found = ours[name].shape if name in ours else None
        asked = wanted[name].shape if name in wanted else None
        if found != asked:
            faults.append(f"{name} is {found or 'missing'}, the configuration asks for {asked or 'none'}")
    if faults:
        rest = "; remove the file to start these anew"
        raise UserError(f"{file} does not fit its configuration: {'; '.join(faults)}{rest}")


def _resized(leaf: jax.ShapeDtypeStruct, axis: int, size: int) -> jax.ShapeDtypeStruct:
    shape = list(leaf.shape)
    shape[axis] = size
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
