"""Writes a trained decoder as a Hugging Face folder, which transformers loads and `init_from.weights` reads back.

    config.json, model.safetensors (or shards and their index)     the text model, under transformers' names
    nextflow.safetensors                                           what only we have, under our names
    tokenizer.json, tokenizer_config.json, chat_template.jinja     where the text tokenizer is a tokenizer.json

Text layout (Qwen2ForCausalLM): always possible. Multimodal positions of text are the same on all axes, which is what
ordinary ones are, so text logits are the same. Source layout: with the folder that the run started from, its
config.json, names, vision tower and other files are taken over, so that a Qwen2.5-VL comes back as one.
"""

import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from nextflow_jax.convert.flat import flatten_variables, unflatten_variables
from nextflow_jax.convert.mapping import matches, write_each
from nextflow_jax.convert.qwen2_5 import (
    OURS_FILE,
    VISION_PATTERNS,
    Checkpoint,
    id_axes,
    own_part,
    text_part,
    tower_rows,
)
from nextflow_jax.convert.qwen2_5_config import CONFIG_FILE, check_tower, text_config_json
from nextflow_jax.convert.weight_files import INDEX_FILE, SINGLE_FILE
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.text import TextTokenizer

SHARD_BYTES = 5_000_000_000
"""Of a file at most, as transformers writes them."""
FROM_SOURCE = ("*.json", "*.txt", "*.jinja")
"""Files of the source that are taken over in its layout; weights, their index and config.json are written anew."""
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TORCH_METADATA = {"format": "pt"}
"""transformers asks for it."""


def save_folder(
    out: str | pathlib.Path,
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokenizer: TextTokenizer,
    max_positions: int,
    source: Checkpoint | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes the folder; what `out` holds is replaced in one step when everything is written.

    Values are written as bfloat16 when that changes none of them (weights that came so and were not trained), otherwise
    in the dtype they have.

    Args:
      out: the folder; an older export in it is replaced.
      config: the decoder's.
      params: its "params" collection on the host.
      tokenizer: of its texts.
      max_positions: of a document; goes into config.json.
      source: for the source layout; None: text layout.
      shard_bytes: of a weights file at most.

    Returns:
      The dtype that was written.

    Raises:
      UserError: `out` holds something else, or the decoder is no Qwen2 or not of the source's shape.
    """
    out = pathlib.Path(out)
    if out.exists() and not (out / OURS_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no export of ours ({OURS_FILE} is missing); give another folder")
    flat = flatten_variables(params)
    dtype = "bfloat16" if all(map(_is_bfloat16, flat.values())) else config.param_dtype
    settings = _config_json(config, dtype, max_positions, source)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if source is not None:
        _copy_files(source.folder, unfinished)
    _write_json(unfinished / CONFIG_FILE, settings)
    prefix, head = (source.prefix, source.head) if source else ("model.", "lm_head.weight")
    tower = write_each(tower_rows(config, prefix, head), _cut(flat, text_part(config), config, first=True))
    named = ((name, np.asarray(array, jnp.dtype(dtype), order="C")) for name, array in tower)
    _save_shards(unfinished, _chained(named, _vision_tower(source)), shard_bytes)
    ours = flatten_variables(_cut(flat, own_part(config), config, first=False))
    arrays = {name: np.array(array, jnp.dtype(dtype), order="C") for name, array in ours.items()}
    save_file(arrays, unfinished / OURS_FILE, TORCH_METADATA)
    _save_tokenizer(unfinished, tokenizer)
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)
    return dtype


def _config_json(config: DecoderConfig, dtype: str, max_positions: int, source: Checkpoint | None) -> dict[str, Any]:
    if source is None:
        return text_config_json(config, dtype, max_positions)
    check_tower(source.tower, config, f"source {source.folder}")
    settings = json.loads((source.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    for part in (settings, settings.get("text_config") or {}):
        part.update((name, dtype) for name in ("dtype", "torch_dtype") if name in part)
    return settings


def _cut(flat: Mapping[str, Any], shapes: Mapping[str, Any], config: DecoderConfig, first: bool) -> dict[str, Any]:
    """The arrays of one of the two parts: tables are cut into the text's entries, `first`, and the others."""
    parts, text = {}, config.vocabulary.text_size
    for name in flatten_variables(shapes):
        parts[name] = np.asarray(flat[name])
        if name in id_axes(config):
            where = slice(text) if first else slice(text, None)
            parts[name] = parts[name][(slice(None),) * id_axes(config)[name] + (where,)]
    return unflatten_variables(parts)


def _vision_tower(source: Checkpoint | None) -> Iterator[tuple[str, np.ndarray]]:
    """The source's arrays that we have no use for, as they are."""
    for name in source.arrays if source else ():
        if any(matches(pattern, name) is not None for pattern in VISION_PATTERNS):
            yield name, np.asarray(source.arrays[name])


def _chained(*parts: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    for part in parts:
        yield from part


def _save_shards(folder: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """One file where all fits, otherwise shards of at most `shard_bytes` (a larger array has one to itself)."""
    shard: dict[str, np.ndarray] = {}
    names: list[list[str]] = []
    total = 0

    def finish() -> None:
        names.append(list(shard))
        save_file(shard, folder / f"{len(names)}.unfinished", TORCH_METADATA)
        shard.clear()

    for name, array in arrays:
        if shard and sum(other.nbytes for other in shard.values()) + array.nbytes > shard_bytes:
            finish()
        shard[name] = array
        total += array.nbytes
    finish()
    if len(names) == 1:
        (folder / "1.unfinished").rename(folder / SINGLE_FILE)
        return
    weight_map = {}
    for number, held in enumerate(names, 1):
        file = f"model-{number:05}-of-{len(names):05}.safetensors"
        (folder / f"{number}.unfinished").rename(folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_FILE, index)


def _copy_files(source: pathlib.Path, target: pathlib.Path) -> None:
    for pattern in FROM_SOURCE:
        for file in source.glob(pattern):
            if file.name not in (CONFIG_FILE, INDEX_FILE):
                shutil.copyfile(file, target / file.name)


def _save_tokenizer(folder: pathlib.Path, tokenizer: TextTokenizer) -> None:
    """The tokenizer's file; where it is a tokenizer.json, with what transformers needs to load it."""
    tokenizer.save(folder / tokenizer.file_name)
    settings = folder / TOKENIZER_CONFIG_FILE
    if tokenizer.file_name.endswith(".json") and not settings.is_file():
        _write_json(settings, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _is_bfloat16(array: Any) -> bool:
    """Whether rounding to bfloat16 changes nothing."""
    array = np.asarray(array)
    if array.dtype != np.float32:
        return array.dtype == jnp.bfloat16
    return not np.any(np.ascontiguousarray(array).view(np.uint32) & 0xFFFF)


def _write_json(file: pathlib.Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
