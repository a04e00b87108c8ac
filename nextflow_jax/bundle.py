"""The bundle: a trained model as a folder that needs no training code to sample from.

    bundle.json                    format version, configurations, fingerprints, sampling defaults, where it comes from
    decoder.safetensors            absent from a tokenizer bundle
    vision_tokenizer.safetensors
    text_tokenizer.model           or tokenizer.json; absent where there is no text tokenizer
    README.md                      what it is and how to use it

Reading needs jax, flax, jaxtyping, numpy, safetensors, sentencepiece and pillow. All is checked before it is used, by
fingerprints of the configurations together with names, shapes, dtypes and contents of the arrays.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nextflow_jax import __version__
from nextflow_jax.config import from_config_dict, preflight, to_plain_dict
from nextflow_jax.convert.flat import flatten_variables, merge, unflatten_variables
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderConfig, DecoderInputs
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.text import TextTokenizer, load_text_tokenizer
from nextflow_jax.vision.codec import VisionTokenizerCodec, fingerprint
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

FORMAT = 1
"""Counts changes that an older reader would misread, and changes of the arrays that a configuration asks for."""

DEFAULTS = SamplingSettings()
DESCRIPTION_FILE = "bundle.json"
DECODER_FILE = "decoder.safetensors"
VISION_FILE = "vision_tokenizer.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderPart:
    """The decoder of a bundle and what it was trained to expect of a sequence."""

    config: DecoderConfig
    variables: Mapping[str, Any]
    sequence: SequenceConfig
    last_scale_context: bool
    """Whether pictures of the prompt feed one more block with the codes of their last scale."""
    max_positions: int
    """The longest document it may hold: prompt and answer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """What a bundle holds, in memory."""

    codec: VisionTokenizerCodec
    text_tokenizer: TextTokenizer | None = None
    decoder: DecoderPart | None = None
    defaults: SamplingSettings = DEFAULTS
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where it comes from: run, step, fingerprints of the data; free-form, JSON-ready."""


def save_bundle(
    out: str | pathlib.Path,
    *,
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer | None = None,
    decoder: DecoderPart | None = None,
    defaults: SamplingSettings = DEFAULTS,
    origin: Mapping[str, Any],
) -> pathlib.Path:
    """Writes a bundle; what `out` holds is replaced in one step when everything is written.

    Args:
      out: the folder; made, with its parents. An older bundle in it is replaced.
      vision_tokenizer: the frozen tokenizer.
      text_tokenizer: of the decoder's text; may be absent from a tokenizer bundle.
      decoder: absent from a tokenizer bundle.
      defaults: the settings that a request without any gets.
      origin: where it comes from, JSON-ready.

    Raises:
      UserError: `out` holds something that is not a bundle, or the parts do not fit one another.
    """
    out = pathlib.Path(out)
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a bundle; give another folder, or remove it")
    bundle = Bundle(vision_tokenizer, text_tokenizer, decoder, defaults, origin)
    _check_parts(bundle, str(out))
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _save_arrays(unfinished / VISION_FILE, vision_tokenizer.variables)
    if decoder is not None:
        _save_arrays(unfinished / DECODER_FILE, decoder.variables)
    if text_tokenizer is not None:
        text_tokenizer.save(unfinished / text_tokenizer.file_name)
    (unfinished / DESCRIPTION_FILE).write_text(json.dumps(_describe(bundle), indent=1) + "\n", encoding="utf-8")
    (unfinished / "README.md").write_text(_readme(bundle), encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)
    return out


def load_bundle(path: str | pathlib.Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
      UserError: no bundle there, another format, a missing or corrupt file, arrays or settings that do not fit, or
        contents that are not those the fingerprints were taken of.
    """
    path = pathlib.Path(path)
    description = _read_description(path)
    bundle = Bundle(
        codec=_load_codec(path, _read_entry(_VisionEntry, description, "vision_tokenizer", path)),
        text_tokenizer=_load_text(path, _read_entry(_TextEntry, description, "text_tokenizer", path)),
        decoder=_load_decoder(path, _read_entry(_DecoderEntry, description, "decoder", path)),
        defaults=_read_entry(SamplingSettings, description, "defaults", path),
        origin=_described(description, "origin", path),
    )
    _check_parts(bundle, str(path))
    return bundle


def read_vision_config(path: str | pathlib.Path) -> VisionTokenizerConfig:
    """The architecture of a bundle's vision tokenizer, by its description alone; no array is read.

    Raises:
      UserError: no bundle there, another format, or settings that make no sense.
    """
    path = pathlib.Path(path)
    return _read_entry(_VisionEntry, _read_description(path), "vision_tokenizer", path).config


def is_bundle(path: str | pathlib.Path) -> bool:
    """Whether a folder holds a bundle."""
    return (pathlib.Path(path) / DESCRIPTION_FILE).is_file()


@dataclasses.dataclass(frozen=True)
class _VisionEntry:
    config: VisionTokenizerConfig
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class _TextEntry:
    file: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class _DecoderEntry:
    config: DecoderConfig
    sequence: SequenceConfig
    last_scale_context: bool
    max_positions: int
    fingerprint: str


def _load_codec(path: pathlib.Path, entry: _VisionEntry) -> VisionTokenizerCodec:
    abstract = functools.partial(_abstract_tokenizer, entry.config)
    return VisionTokenizerCodec(entry.config, _load_variables(path / VISION_FILE, entry, abstract))


def _load_text(path: pathlib.Path, entry: _TextEntry | None) -> TextTokenizer | None:
    if entry is None:
        return None
    tokenizer = load_text_tokenizer(_existing(path / entry.file))
    _check_fingerprint(path / entry.file, entry.fingerprint, tokenizer.fingerprint)
    return tokenizer


def _load_decoder(path: pathlib.Path, entry: _DecoderEntry | None) -> DecoderPart | None:
    if entry is None:
        return None
    abstract = functools.partial(_abstract_decoder, entry.config, entry.sequence)
    variables = _load_variables(path / DECODER_FILE, entry, abstract)
    return DecoderPart(entry.config, variables, entry.sequence, entry.last_scale_context, entry.max_positions)


def _describe(bundle: Bundle) -> dict[str, Any]:
    codec, decoder, text_tokenizer = bundle.codec, bundle.decoder, bundle.text_tokenizer
    entries: dict[str, Any] = {"decoder": None, "text_tokenizer": None}
    if decoder is not None:
        entries["decoder"] = _DecoderEntry(
            config=decoder.config,
            sequence=decoder.sequence,
            last_scale_context=decoder.last_scale_context,
            max_positions=decoder.max_positions,
            fingerprint=fingerprint(decoder.variables, decoder.config),
        )
    if text_tokenizer is not None:
        entries["text_tokenizer"] = _TextEntry(text_tokenizer.file_name, text_tokenizer.fingerprint)
    entries["vision_tokenizer"] = _VisionEntry(codec.config, codec.fingerprint)
    entries["defaults"] = bundle.defaults
    described = {name: None if entry is None else to_plain_dict(entry) for name, entry in entries.items()}
    return {"format": FORMAT, "version": __version__, **described, "origin": dict(bundle.origin)}


def _read_description(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"bundle {path}: no such folder; `python -m nextflow_jax.export` makes one from a run")
    file = _existing(path / DESCRIPTION_FILE)
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); export the bundle again") from error
    if not isinstance(description, dict) or "format" not in description:
        raise UserError(f"{file}: says no format version; it is not a bundle's description")
    if description["format"] != FORMAT:
        raise UserError(
            f"{file}: format {description['format']}, this is nextflow_jax {__version__}, which reads format {FORMAT}; "
            "export the bundle again, or install the version that wrote it"
        )
    return description


def _read_entry(cls: type, description: Mapping[str, Any], name: str, path: pathlib.Path) -> Any:
    """A part of the description as its dataclass, all rules checked; None where the bundle has no such part."""
    values = _described(description, name, path)
    if values is None and cls is not _VisionEntry:
        return None
    prefix = f"{path / DESCRIPTION_FILE}: {name}"
    entry = from_config_dict(cls, values, prefix)
    preflight(entry, prefix)
    return entry


def _described(description: Mapping[str, Any], name: str, path: pathlib.Path) -> Any:
    if name not in description:
        raise UserError(f"{path / DESCRIPTION_FILE}: {name} is missing; export the bundle again")
    return description[name]


def _check_parts(bundle: Bundle, where: str) -> None:
    """Refuses parts that were not made for one another."""
    decoder, codec, text_tokenizer = bundle.decoder, bundle.codec, bundle.text_tokenizer
    if decoder is None:
        return
    if text_tokenizer is None:
        raise UserError(f"bundle {where}: has a decoder and no text tokenizer")
    vocabulary = decoder.config.vocabulary
    codes, code_dim = codec.codebook.shape
    scales = codec.family.max_scales + int(decoder.last_scale_context)
    pairs = {
        "codes": (vocabulary.codebook_size, codes),
        "code dimensions": (decoder.config.code_dim, code_dim),
    }
    faults = [f"{name}: decoder {ours}, tokenizer {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    # More rows than ids is nothing wrong: published tables are padded.
    if vocabulary.text_size < text_tokenizer.size:
        faults.append(f"text tokens: decoder {vocabulary.text_size}, tokenizer {text_tokenizer.size}")
    if decoder.config.max_scales < scales:
        faults.append(f"scales: decoder {decoder.config.max_scales}, schedules and context block {scales}")
    if faults:
        raise UserError(f"bundle {where}: decoder and tokenizers do not fit ({'; '.join(faults)})")


def _check_fingerprint(file: pathlib.Path, recorded: str, found: str) -> None:
    if recorded != found:
        raise UserError(
            f"{file}: fingerprint {found[:12]}, {DESCRIPTION_FILE} says {recorded[:12]}; the file was changed or is "
            "of another model: export the bundle again"
        )


def _abstract_tokenizer(config: VisionTokenizerConfig) -> Any:
    images = jnp.zeros((1, *config.family.sizes[0], 3))
    return jax.eval_shape(lambda: VisionTokenizer(config).init(jax.random.key(0), images, train=False))


def _abstract_decoder(config: DecoderConfig, sequence: SequenceConfig) -> Any:
    return jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1, sequence.taps)))


def _save_arrays(path: pathlib.Path, variables: Mapping[str, Any]) -> None:
    save_file({name: np.asarray(array, order="C") for name, array in flatten_variables(variables).items()}, path)


def _load_variables(
    file: pathlib.Path, entry: _VisionEntry | _DecoderEntry, abstract: Callable[[], Any]
) -> dict[str, Any]:
    """The arrays of a part, which are those that its fingerprint was taken of.

    Only where they are not are the model's own shapes asked for, to say what is wrong: making them takes longer than
    reading the arrays of a small model.
    """
    arrays = _load_arrays(file)
    variables = unflatten_variables(arrays)
    found = fingerprint(variables, entry.config)
    if found != entry.fingerprint:
        merge(arrays, abstract(), str(file))
    _check_fingerprint(file, entry.fingerprint, found)
    return variables


def _load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return load_file(_existing(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); export the bundle again") from error


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the bundle is incomplete, export it again")
    return path


def _readme(bundle: Bundle) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in bundle.codec.family.sizes)
    origin = "\n".join(f"- {name}: {value}" for name, value in bundle.origin.items())
    head = f"Pictures: {sizes}; {len(bundle.codec.codebook)} codes.\n\nOrigin:\n{origin}\n"
    if bundle.decoder is None:
        return f"# A NextFlow vision tokenizer\n\n{head}\nLoad it with `nextflow_jax.bundle.load_bundle`.\n"
    parameters = sum(array.size for array in flatten_variables(bundle.decoder.variables).values())
    return (
        f"# A NextFlow model\n\n{head}\nDecoder: {parameters:,} parameters.\n\n"
        "    python -m nextflow_jax.sample --bundle . --prompt TEXT --out DIR\n\n"
        "reads `bundle.json` for everything else: configurations, fingerprints, default settings.\n"
    )
