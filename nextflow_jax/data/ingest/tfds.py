"""Data sets that TFDS has built as ArrayRecord files, read without tensorflow.

`SourceConfig.paths` are the folders of versions ("~/tensorflow_datasets/coco/2017/1.1.0"; all splits are read) or their
files ("…/1.1.0/*-train.array_record-*": one split). The fields are `text`, `image`, `label` and the others of
ingest/fields.py; `SourceConfig.columns` names the feature of each, with / between a feature and one inside it
("captions/en"). Of a feature with several texts the first is taken; a class label becomes the name of its class.
Pictures stay encoded as TFDS has stored them. Documents are known by file and number.
"""

import functools
import glob
import importlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RefusedDocument
from nextflow_jax.data.ingest.builder import build, key_of
from nextflow_jax.data.ingest.config import FIELDS, SourceConfig
from nextflow_jax.data.ingest.fields import assemble
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.remote import UnreadableFile, is_url, list_files, name_below
from nextflow_jax.errors import UserError

_AT_ONCE = 16
"""Records read together: their pictures are held."""
_SHARDS = re.compile(r"(.*\.array_record)-[0-9]{5}-of-([0-9]{5})$")


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format; files larger than `unit_bytes` are opened to be divided."""
    found = []
    for path, size in _list(config):
        number = -(-size // config.unit_bytes)
        if number <= 1:
            found.append(Unit(path, size))
            continue
        try:
            reader = _open_records(path)
        except UnreadableFile:
            found.append(Unit(path, size))  # whoever reads it says so
            continue
        bounds = np.linspace(0, reader.num_records(), number + 1).astype(int).tolist()
        reader.close()
        found.extend(Unit(path, size, start, stop) for start, stop in zip(bounds, bounds[1:]) if start < stop)
    return found


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format."""
    decode = _Decoder(unit, config)
    name = name_below(unit.path, config.paths)
    reader = _open_records(unit.path)
    try:
        stop = unit.stop if unit.stop >= 0 else reader.num_records()
        for start in range(unit.start, stop, _AT_ONCE):
            numbers = range(start, min(stop, start + _AT_ONCE))
            for number, record in zip(numbers, _read_records(reader, numbers)):
                key = key_of(config, name, number)
                yield build(key, functools.partial(decode, key, record))
    finally:
        reader.close()


def _list(config: SourceConfig) -> list[tuple[str, int]]:
    """The files of all paths and their sizes.

    Raises:
      UserError: a URL, a folder that is no data set or lacks files, or one of another file format.
    """
    patterns = []
    for path in config.paths:
        if is_url(path):
            fix = "mount the bucket as a folder, or copy the files"
            raise UserError(f"source path {path!r}: ArrayRecord files are read from local folders only; {fix}")
        folders = [folder for folder in sorted(glob.glob(path)) if os.path.isdir(folder)]
        for folder in folders:
            _check_folder(folder)
        patterns.extend(f"{glob.escape(folder)}/*.array_record*" for folder in folders)
        if not folders:
            patterns.append(path)
    return list_files(tuple(patterns))


def _check_folder(folder: str) -> None:
    names = os.listdir(folder)
    matches = [match for name in names if (match := _SHARDS.match(name))]
    if "features.json" not in names or not matches:
        fix = "give the folder of a version that was built with file_format='array_record'"
        raise UserError(f"{folder} holds no data set of TFDS as ArrayRecord files; {fix}")
    for split, number in sorted({(match[1], int(match[2])) for match in matches}):
        there = sum(match[1] == split for match in matches)
        if there != number:
            fix = "copy the rest, or name the files themselves"
            raise UserError(f"{folder}: of the {number} files of {split} there are {there}; {fix}")


def _open_records(path: str) -> Any:
    """An array_record reader of a file.

    Raises:
      UnreadableFile: it is no ArrayRecord file, or is cut off.
    """
    module = importlib.import_module("array_record.python.array_record_module")
    try:
        reader = module.ArrayRecordReader(path)
        if not reader.ok():
            reader.close()  # raises what is wrong
            raise ValueError("not readable")
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or "cut off or damaged"
        raise UnreadableFile(f"{path} is no whole ArrayRecord file ({reason})") from error
    return reader


def _read_records(reader: Any, numbers: range) -> list[bytes | None]:
    """Records, None where one is damaged; a damaged one does not cost those it is read with."""
    try:
        return reader.read(list(numbers))
    except (RuntimeError, ValueError, OSError, IndexError):
        if len(numbers) == 1:
            return [None]
    return [record for number in numbers for record in _read_records(reader, range(number, number + 1))]


class _Decoder:
    """Records of one data set to documents."""

    def __init__(self, unit: Unit, config: SourceConfig) -> None:
        tfds = _import_tfds(unit.path)
        folder = os.path.dirname(unit.path) or "."
        try:
            self._features = tfds.features.FeatureConnector.from_config(folder)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{folder} has no readable features.json ({error}); build the data set again") from error
        columns = {field: config.column(field) for field in FIELDS if field != "id"}
        self._config = config
        self._found = {field: found for field, name in columns.items() if (found := _find(self._features, name))}
        wanted = {"text", *dict(config.columns)} | (set() if config.task == "text" else {"image"})
        missing = sorted(columns[field] for field in (wanted & set(columns)) - set(self._found))
        if missing:
            fix = "set `columns` of the source to (field, feature) pairs"
            there = ", ".join(sorted(self._features))
            raise UserError(f"{folder} has no feature {missing[0]!r}; it has {there}; {fix}")
        image = self._found.get("image")
        if image is not None and (not isinstance(image, tfds.features.Image) or image.np_dtype == np.float32):
            raise UserError(f"{folder}: feature {columns['image']!r} is no picture of 8 or 16 bits; it is {image}")
        # Pictures on the top level stay encoded, also those that nobody asked for.
        pictures = [name for name, feature in self._features.items() if isinstance(feature, tfds.features.Image)]
        self._decoders = dict.fromkeys(pictures, tfds.decode.SkipDecoding())

    def __call__(self, key: str, record: bytes | None) -> RawDocument:
        """The document of a record.

        Raises:
          RefusedDocument, RefusedImage: a record that is damaged or lacks what its task needs.
        """
        if record is None:
            raise RefusedDocument("unreadable source")
        try:
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
        except Exception as error:  # protobuf and the features' own decoders raise all kinds of errors
            raise RefusedDocument("bad record") from error
        names = {field: self._config.column(field) for field in self._found}
        fields = {name: _plain(_value(example, name), self._found[field]) for field, name in names.items()}
        if "image" in names and self._config.task != "text" and not fields[names["image"]]:
            raise RefusedDocument("missing file")
        return assemble(key, fields, self._config, lambda data: data)


def _import_tfds(path: str) -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        needs = f"data sets of TFDS need {error.name}, which is not installed"
        raise UserError(f"{path}: {needs}; pip install 'nextflow_jax[openmoji]'") from error


def _find(features: Any, name: str) -> Any:
    """The feature of a name with slashes, or None."""
    for part in name.split("/"):
        features = getattr(features, "feature", features)  # what a sequence is made of
        if not hasattr(features, "keys") or part not in features:
            return None
        features = features[part]
    return features


def _value(example: Any, name: str) -> Any:
    return functools.reduce(lambda value, part: value[part], name.split("/"), example)


def _plain(value: Any, feature: Any) -> Any:
    """Bytes, text, a number or a class name; of several, the first."""
    while isinstance(value, np.ndarray | list | tuple):
        if not len(value):
            return None
        value = value[0]
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return value
