"""manifest.json: what a directory of shards holds, how it was made, and which tokenizers made it."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.config import from_config_dict, to_plain_dict
from nextflow_jax.data import records
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vocabulary import Vocabulary

FILE_NAME = "manifest.json"

_SHARED = ("text_tokenizer", "vision_tokenizer", "schedule_family", "text_size", "codebook_size")
"""What shards that are read together agree on."""


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One ArrayRecord file."""

    file: str
    records: int
    tokens: int
    """Positions of its documents, with neither dropout nor context blocks."""
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SplitEntry:
    """The shards of one split: "train", "validation" or "heldout"."""

    name: str
    documents: int
    """Documents before repetition; `records` counts their self-correction draws one by one."""
    pictures: int
    """Pictures they show, one that two documents show counted twice."""
    draws: int
    shards: tuple[ShardEntry, ...]
    lost: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Documents that were left out or broken, by reason."""

    @property
    def records(self) -> int:
        """Records in all shards."""
        return sum(shard.records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Written last, so that a directory without it is an unfinished extraction."""

    text_tokenizer: str
    """Fingerprint."""
    vision_tokenizer: str
    """Fingerprint."""
    schedule_family: ScheduleFamily
    text_size: int
    codebook_size: int
    splits: tuple[SplitEntry, ...]
    made_from: dict[str, Any]
    """The inputs of the extraction: configuration, fingerprint of the pictures and documents, program version."""
    schema_version: int = records.SCHEMA_VERSION
    index: str = ""
    """SHA-256 of index/index.json, which has those of the index's files; empty in shards of versions before it."""

    def split(self, name: str) -> SplitEntry:
        """The split called `name`.

        Raises:
          UserError: there is none, naming those there are.
        """
        for split in self.splits:
            if split.name == name:
                return split
        raise UserError(f"shards have no split {name!r}; they have {', '.join(split.name for split in self.splits)}")

    @property
    def vocabulary(self) -> Vocabulary:
        """The unified vocabulary of both tokenizers; a model may pad it further, which changes no id."""
        return Vocabulary(self.text_size, self.codebook_size)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(to_plain_dict(self), indent=1, sort_keys=True) + "\n"


def read_manifest(directory: str | pathlib.Path) -> Manifest:
    """Reads `directory`/manifest.json.

    Raises:
      UserError: no such file, not readable as a manifest, or of another schema version.
    """
    path = pathlib.Path(directory) / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {directory} holds no finished extraction; "
            f"make it with python -m nextflow_jax.extract --out {directory}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not readable ({error}); extract the shards again") from error
    if version not in records.READABLE_VERSIONS:
        readable = " and ".join(map(str, records.READABLE_VERSIONS))
        raise UserError(
            f"{path} has schema version {version}; this program reads versions {readable}; extract the shards again"
        )
    values.setdefault("index", "")
    for split in values["splits"] if isinstance(values.get("splits"), list) else ():
        if isinstance(split, dict):
            split.setdefault("lost", {})  # not in shards of earlier versions
    return from_config_dict(Manifest, values, prefix=str(path))


def shard_directories(shards: str | pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The directories that `shards` names, comma-separated.

    Raises:
      UserError: it names none, or one twice.
    """
    names = [str(shards)] if isinstance(shards, pathlib.Path) else [name.strip() for name in shards.split(",")]
    directories = tuple(pathlib.Path(name) for name in names if name)
    if not directories:
        raise UserError(f"shards {str(shards)!r}: names no directory; give what `extract --out` wrote")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError(f"shards {shards}: names a directory twice; its documents' weight is the mixture's choice")
    return directories


def read_manifests(shards: str | pathlib.Path) -> Manifest:
    """The manifest of one directory, or what `join_manifests` makes of those of several, comma-separated.

    Raises:
      UserError: as `read_manifest`, `shard_directories` and `join_manifests`.
    """
    return join_manifests({directory: read_manifest(directory) for directory in shard_directories(shards)})


def join_manifests(manifests: Mapping[pathlib.Path, Manifest]) -> Manifest:
    """What the manifests say together: a split's counts are added up, its shards are those of all in turn.

    Raises:
      UserError: their tokenizers or schedules differ; names both directories and each difference.
    """
    (first, joint), *others = manifests.items()
    for directory, manifest in others:
        differences = [
            f"{name.replace('_', ' ')}: {getattr(joint, name)} and {getattr(manifest, name)}"
            for name in _SHARED
            if getattr(joint, name) != getattr(manifest, name)
        ]
        if differences:
            raise UserError(
                f"shards {first} and {directory} do not belong together ({'; '.join(differences)}); extract both with "
                "the same tokenizers and schedules"
            )
    if not others:
        return joint
    splits: dict[str, list[SplitEntry]] = {}
    for split in (split for manifest in manifests.values() for split in manifest.splits):
        splits.setdefault(split.name, []).append(split)
    return dataclasses.replace(
        joint,
        splits=tuple(_join_splits(entries) for entries in splits.values()),
        made_from={str(directory): manifest.made_from for directory, manifest in manifests.items()},
        schema_version=min(manifest.schema_version for manifest in manifests.values()),
        index="",
    )


def _join_splits(entries: Sequence[SplitEntry]) -> SplitEntry:
    return SplitEntry(
        name=entries[0].name,
        documents=sum(entry.documents for entry in entries),
        pictures=sum(entry.pictures for entry in entries),
        draws=max(entry.draws for entry in entries),
        shards=tuple(shard for entry in entries for shard in entry.shards),
        lost=dict(sum((collections.Counter(entry.lost) for entry in entries), collections.Counter())),
    )


def check_fingerprints(
    manifest: Manifest, *, text_tokenizer: str, vision_tokenizer: str, schedule_family: ScheduleFamily
) -> None:
    """Refuses shards that were made with other tokenizers or another schedule family than the model's.

    Raises:
      UserError: names each difference, the shards' value and the model's.
    """
    wanted = {
        "text tokenizer": (manifest.text_tokenizer, text_tokenizer),
        "vision tokenizer": (manifest.vision_tokenizer, vision_tokenizer),
        "schedule family": (manifest.schedule_family, schedule_family),
    }
    differences = [
        f"{name}: shards have {shards}, the model has {model}"
        for name, (shards, model) in wanted.items()
        if shards != model
    ]
    if differences:
        raise UserError(
            "shards do not belong to this model; "
            + "; ".join(differences)
            + "; extract with the model's tokenizer, or train on shards of this one"
        )
