"""The settings of an ingest: which sources, how they are read, what is filtered."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault, nearest
from nextflow_jax.data.documents import TASKS
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.image_files import ImageLimits

FORMATS = ("jsonl", "webdataset", "parquet", "llava", "tfds", "video")
"""The names of formats; the module of that name reads each."""

FIELDS = ("id", "text", "image", "label", "licence", "source", "texts", "images", "conversations", "frames", "video")
"""What `SourceConfig.columns` may rename."""

SPLITS = ("", "train", "validation", "heldout")

MOTIONS = ("static", "camera", "object")
"""What moves between the frames of a video: hardly anything, everything, a part of the picture."""


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How a video becomes a document of frames (NextFlow, recipe section 5: at most 5 frames at 512, 3 at 1024)."""

    max_frames: int = 5
    min_frames: int = 2
    frames_per_second: float = 2.0
    """Of the frames that are looked at at all; folders of frames are taken to be sampled already."""
    selection: str = "motion"
    """"motion": equal shares of the summed difference between frames; "uniform": equal times."""
    motions: tuple[str, ...] = ("camera", "object")
    """Which of MOTIONS are kept."""
    cell_changes: float = 0.04
    """Mean absolute difference of grey (0 to 1) above which a cell, 1/144 of the picture, changes between frames."""
    static_below: float = 0.01
    """Share of the cells that change from frame to frame, on average, below which a video is static."""
    camera_above: float = 0.5
    """Share of the cells that change, while something moves, above which it is the camera; below, an object."""
    cut_above: float = 0.25
    """Mean absolute difference above which two frames are of different shots: only the longest shot is kept."""
    transition: str = "{seconds:.1f} seconds later:"
    """Text before every frame but the first, a prompt; {seconds}, {frame} (from 2) and {motion} may be used."""
    jpeg_quality: int = 95
    """Of frames taken from video files; frames that are files stay as they are."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if not 1 <= self.min_frames <= self.max_frames:
            yield Fault("min_frames", self.min_frames, f"is from 1 to max_frames = {self.max_frames}", "use e.g. 2")
        if self.frames_per_second <= 0:
            yield Fault("frames_per_second", self.frames_per_second, "must be positive", "use e.g. 2.0")
        if self.selection not in ("motion", "uniform"):
            fix = nearest(self.selection, ("motion", "uniform"))
            yield Fault("selection", self.selection, "is no way to choose frames", fix)
        for motion in self.motions:
            if motion not in MOTIONS:
                yield Fault("motions", motion, "is no kind of motion", nearest(motion, MOTIONS))
        if not self.motions:
            yield Fault("motions", (), "no video would be left", f"use some of {', '.join(MOTIONS)}")
        for name in ("cell_changes", "static_below", "camera_above", "cut_above"):
            if not 0 <= getattr(self, name) <= 1:
                yield Fault(name, getattr(self, name), "is from 0 to 1", "use the default")
        if not 1 <= self.jpeg_quality <= 100:
            yield Fault("jpeg_quality", self.jpeg_quality, "is from 1 to 100", "use 95")
        try:
            self.transition.format(seconds=0.0, frame=2, motion="camera")
        except (KeyError, IndexError, ValueError) as error:
            rule = f"cannot be filled in ({type(error).__name__}: {error})"
            yield Fault("transition", self.transition, rule, "use only {seconds}, {frame} and {motion}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source: files of one format that are read alike."""

    name: str = "source"
    """Begins the keys of its documents and is what mixtures know it by; letters, digits, - and _."""
    format: str = "jsonl"
    """One of FORMATS."""
    paths: tuple[str, ...] = ()
    """Files, globs (** for any depth) or fsspec URLs such as gs://bucket/*.tar; read in sorted order."""
    task: str = "text_to_image"
    """Of documents that are one picture with a text; records that say their own task keep it."""
    licence: str = ""
    """Of documents that do not say."""
    split: str = ""
    """"train", "validation" or "heldout" for all its documents; empty: drawn by `validation_share`."""
    columns: tuple[tuple[str, str], ...] = ()
    """(field, name in the files), for files that name one of FIELDS otherwise."""
    image_root: str = ""
    """Folder or URL that pictures named by a path lie below; empty: the folder of the file that names them."""
    url_schemes: tuple[str, ...] = ("gs", "s3", "https")
    """Of URLs that records may name pictures by."""
    documents_per_unit: int = 0
    """Documents read of each unit at most, for a trial; 0: all."""
    max_bytes: int = 64_000_000
    """Of one picture or record; larger ones are dropped unread."""
    unit_bytes: int = 64_000_000
    """Of a file that can be divided (lines, row groups), about this much becomes one part of the corpus."""
    limits: ImageLimits = ImageLimits()
    video: VideoConfig = VideoConfig()

    def column(self, field: str) -> str:
        """What the files call a field."""
        return dict(self.columns).get(field, field)

    def faults(self) -> Iterator[Fault]:
        """The rules this source breaks."""
        if not self.name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in self.name):
            yield Fault("name", self.name, "is made of letters, digits, - and _", "choose another")
        if self.format not in FORMATS:
            yield Fault("format", self.format, "is no format", nearest(self.format, FORMATS))
        if not self.paths:
            yield Fault("paths", self.paths, "names no files", "give files, globs or URLs")
        if self.task not in TASKS:
            yield Fault("task", self.task, "is no task", nearest(self.task, TASKS))
        if self.split not in SPLITS:
            yield Fault("split", self.split, "is no split", f"use one of {', '.join(map(repr, SPLITS))}")
        for field, _ in self.columns:
            if field not in FIELDS:
                yield Fault("columns", field, "is no field", nearest(field, FIELDS))
        if self.documents_per_unit < 0:
            yield Fault("documents_per_unit", self.documents_per_unit, "must not be negative", "use 0 for all")
        for name in ("max_bytes", "unit_bytes"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use the default")


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """From sources to a corpus."""

    kind: str = "ingest"
    sources: tuple[SourceConfig, ...] = ()
    filters: FiltersConfig = FiltersConfig()
    validation_share: float = 0.01
    """Of the documents whose source names no split, drawn by hashing keys: it stays when documents are added."""
    max_broken_share: float = 0.01
    """Share of a source's documents that may be unusable (reasons.BROKEN); more is an error once all are read."""
    max_unreadable_files: int = 0
    """Files that may be left out because they cannot be read at all, or not to their end; each counts as one broken
    document. More are an error, which names some, once all others are read."""
    workers: int = 0
    """Processes; 0: one a CPU core."""
    seed: int = 0
    """Of the split, and of which documents of a label stay."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if self.kind != "ingest":
            yield Fault("kind", self.kind, "only an ingest configuration says what to ingest", "use 'ingest'")
        if not self.sources:
            yield Fault("sources", (), "there is nothing to read", "add a SourceConfig")
        names = [source.name for source in self.sources]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault("sources", name, "two sources have this name", "rename one, or give it both paths")
        for name in ("validation_share", "max_broken_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield Fault(name, getattr(self, name), "is a share", "use a number from 0 to 1")
        for name, fix in (("workers", "0 for one a CPU core"), ("max_unreadable_files", "0 for none")):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", f"use {fix}")
