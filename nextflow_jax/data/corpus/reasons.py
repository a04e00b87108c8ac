"""Why a document is left out of a corpus: the one table of reasons, counted by their names in corpus.json."""

from collections.abc import Mapping

from nextflow_jax.data import image_files

BROKEN: Mapping[str, str] = {
    **image_files.REASONS,
    "missing file": "names a picture or a text that is not there",
    "unreadable source": "its bytes could not be read, after all retries",
    "unsafe path": "names a file outside its folder, or a URL of a scheme that is not allowed",
    "nested archive": "is an archive inside an archive",
    "too many bytes": "is larger than max_bytes",
    "not utf-8": "has text that is not UTF-8",
    "control characters": "has text with NUL characters",
    "bad record": "is not what the format describes: no JSON object, a missing field, a field of another type",
    "unknown task": "names a task or a role that there is not",
    "nothing to learn": "has no text and no picture that the model is to produce",
    "truncated": "ends in the middle; what follows in the same file is lost too",
}
"""Documents that cannot be used. Their share is limited by `max_broken_share`."""

FILTERED: Mapping[str, str] = {
    "small picture": "has a picture below min_side or min_pixels",
    "extreme ratio": "has a picture beyond max_ratio",
    "low resolution": "has a picture that would be enlarged beyond max_zoom",
    "outside buckets": "has a picture that would lose more than max_crop",
    "short text": "has fewer characters than min_characters",
    "long text": "has more characters than max_characters",
    "other script": "is written in other scripts",
    "few frames": "is a video of which fewer frames than min_frames are left",
    "wrong motion": "is a video that moves as `motions` does not allow",
    "repeated key": "has the key of an earlier document",
    "exact duplicate": "has the pictures and texts of an earlier document",
    "repeated pictures": "has the pictures of an earlier document",
    "near duplicate": "has pictures that look like those of an earlier document",
    "repeated text": "has the text of earlier documents",
    "label cap": "is one too many of its label",
}
"""Documents that the configuration does not want."""

REASONS: Mapping[str, str] = {**BROKEN, **FILTERED}
"""Reason -> what is true of a document that is dropped for it."""
