"""The settings of all filters; with the defaults only unreadable pictures and exact duplicates are dropped."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault, nearest
from nextflow_jax.data.documents import TASKS
from nextflow_jax.data.filters.scripts import SCRIPTS
from nextflow_jax.data.image_files import Size

MAX_NEAR_DISTANCE = 12
"""Past this, chance alone makes pictures of a large corpus neighbours, and looking them up is no longer quick."""


@dataclasses.dataclass(frozen=True)
class PictureFilter:
    """Which pictures a document may have; one that breaks a rule drops the document."""

    min_side: int = 0
    """Pixels of the shorter side of the upright picture."""
    min_pixels: int = 0
    """Height x width."""
    max_ratio: float = 0.0
    """Longer side / shorter side; 0: any. The schedules go to 4."""
    decode: bool = True
    """Every picture is decoded: damaged ones are dropped, and the corpus gets the fingerprints of near duplicates."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("min_side", "min_pixels"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 for no limit")
        if self.max_ratio and self.max_ratio < 1:
            rule = "is longer side / shorter side, at least 1, or 0 for any"
            yield Fault("max_ratio", self.max_ratio, rule, "use e.g. 4.0")


@dataclasses.dataclass(frozen=True)
class BucketFilter:
    """Which pictures fit a training size: the one of nearest ratio is the picture's bucket."""

    sizes: tuple[Size, ...] = ()
    """Height and width of the training sizes; empty: no rule."""
    max_zoom: float = 1.0
    """How much a picture may be enlarged to fill its bucket; 1.0: not at all."""
    max_crop: float = 1.0
    """Share of the picture's area that filling the bucket may cut off; 1.0: any."""
    as_label: bool = False
    """The document's label becomes the bucket of its first picture, "512x512" (rows x columns), for the balance."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for size in self.sizes:
            if min(size) < 1:
                yield Fault("sizes", size, "height and width must be at least 1", "correct the size")
        if self.max_zoom <= 0:
            yield Fault("max_zoom", self.max_zoom, "must be positive", "use 1.0 to allow no enlargement")
        if not 0 <= self.max_crop <= 1:
            yield Fault("max_crop", self.max_crop, "is a share from 0 to 1", "use 1.0 for any")
        if self.as_label and not self.sizes:
            yield Fault("as_label", True, "there are no sizes to be labels", "set sizes")


@dataclasses.dataclass(frozen=True)
class TextFilter:
    """Which texts a document may have: the rules are on all its text segments together."""

    min_characters: int = 0
    """Unicode characters after white space at both ends is taken off."""
    max_characters: int = 0
    """0: any."""
    tasks: tuple[str, ...] = ("text_to_image", "image_to_text")
    """The tasks whose length is looked at."""
    scripts: tuple[str, ...] = ()
    """Names of Unicode scripts (data/filters/scripts.py), such as ("Latin",); empty: any."""
    min_script_share: float = 0.8
    """Share of a document's letters that must be of `scripts`. Documents without letters are kept."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("min_characters", "max_characters"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 for no limit")
        if 0 < self.max_characters < self.min_characters:
            rule = f"must be at least min_characters = {self.min_characters}"
            yield Fault("max_characters", self.max_characters, rule, "raise it or lower min_characters")
        for script in self.scripts:
            if script not in SCRIPTS:
                yield Fault("scripts", script, "is no script known here", nearest(script, list(SCRIPTS)))
        if not 0 < self.min_script_share <= 1:
            yield Fault("min_script_share", self.min_script_share, "is a share above 0, at most 1", "use e.g. 0.8")
        yield from _task_faults("tasks", self.tasks)


@dataclasses.dataclass(frozen=True)
class DuplicatesConfig:
    """Which documents repeat an earlier one of their task; the first in the order of the corpus stays."""

    exact: bool = True
    """Same pictures, byte for byte, and same normalised texts, in the same order."""
    same_pictures: bool = False
    """Same pictures, byte for byte, whatever the texts."""
    near_distance: int = -1
    """As many pictures, each at most so many of 64 fingerprint bits from the other's picture at its place; -1: off.
    0 finds copies that were scaled or saved anew, 4 most of those, more also finds what merely looks alike."""
    near_colour: int = 24
    """Near pictures must also be this near in mean colour (largest difference of a channel, 0 to 255): the bits see
    brightness alone."""
    near_with_text: tuple[str, ...] = ("edit", "frames", "interleaved")
    """Tasks of which near documents are duplicates only when their normalised texts are the same too."""
    repeats_of_text: int = 0
    """How many documents of a task may have the same normalised texts; 0: any."""
    text_tasks: tuple[str, ...] = ("text",)
    """The tasks to which `repeats_of_text` applies."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if not -1 <= self.near_distance <= MAX_NEAR_DISTANCE:
            rule = f"is from 0 to {MAX_NEAR_DISTANCE}, or -1 for off"
            yield Fault("near_distance", self.near_distance, rule, "use e.g. 4")
        if not 0 <= self.near_colour <= 255:
            yield Fault("near_colour", self.near_colour, "is from 0 to 255", "use 255 for any colour")
        if self.repeats_of_text < 0:
            yield Fault("repeats_of_text", self.repeats_of_text, "must not be negative", "use 0 for no limit")
        yield from _task_faults("near_with_text", self.near_with_text)
        yield from _task_faults("text_tasks", self.text_tasks)


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """How many documents a label may have, after duplicates are gone; documents without a label are never cut."""

    max_per_label: int = 0
    """0: any."""
    max_times_median: float = 0.0
    """As a multiple of the median label's number of documents; 0: any. Of both limits the lower holds."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if self.max_per_label < 0:
            yield Fault("max_per_label", self.max_per_label, "must not be negative", "use 0 for no limit")
        if self.max_times_median < 0:
            yield Fault("max_times_median", self.max_times_median, "must not be negative", "use 0.0 for no limit")


@dataclasses.dataclass(frozen=True)
class FiltersConfig:
    """All filters of an ingest: first three groups on each document alone, then two over the whole corpus."""

    pictures: PictureFilter = PictureFilter()
    buckets: BucketFilter = BucketFilter()
    texts: TextFilter = TextFilter()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    balance: BalanceConfig = BalanceConfig()

    def faults(self) -> Iterator[Fault]:
        """The rules between the groups."""
        if self.duplicates.near_distance >= 0 and not self.pictures.decode:
            rule = "near duplicates need pictures.decode"
            fix = "set pictures.decode or duplicates.near_distance = -1"
            yield Fault("duplicates.near_distance", self.duplicates.near_distance, rule, fix)


def _task_faults(field: str, tasks: tuple[str, ...]) -> Iterator[Fault]:
    for task in tasks:
        if task not in TASKS:
            yield Fault(field, task, "is no task", nearest(task, TASKS))
