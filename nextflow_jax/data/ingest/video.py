"""Videos: every one becomes a document of the task "frames", a few of its frames with transition text between them.

`SourceConfig.paths` name, in any mixture:

- folders of frames: each folder below that holds pictures is a video, in the natural order of their names (2 before
  10). Frames may also be named by a glob or URL, such as gs://bucket/videos/**/*.jpg: all pictures of one folder are a
  video;
- video files, by their endings (clips.VIDEO_SUFFIXES), also in the folders named; they need PyAV (extra `video`);
- .txt: the frames of one video, one path a line;
- .jsonl (or .jsonl.gz): a video a line, by its frames or by a video file; all but one of those two may be left out:

    {"id": "7", "frames": ["7/0.jpg", "7/1.jpg"], "fps": 4.0, "text": "a cat jumps", "label": "", "licence": "CC0"}
    {"video": "8.mp4", "text": "a dog sleeps"}

Paths in lists are relative to `SourceConfig.image_root`, or to the list's folder. A text file beside a folder or video
file, with its name (`7.txt` for `7/` or `7.mp4`), is its caption.

A caption is the first prompt; then every frame is a response. Without one the first frame is the prompt. Documents
that say no label get the kind of motion as their label, for the balance.
"""

import dataclasses
import functools
import glob
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawSegment, RawText, RefusedDocument
from nextflow_jax.data.image_files import SUFFIXES
from nextflow_jax.data.ingest.builder import build, decode_text, key_of, picture
from nextflow_jax.data.ingest.clips import VIDEO_SUFFIXES, Clip, FrameFiles, VideoFile, import_av, look_through
from nextflow_jax.data.ingest.config import SourceConfig, VideoConfig
from nextflow_jax.data.ingest.fields import optional, parse_object
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.lines import line_units, read_lines
from nextflow_jax.data.ingest.motion import cell_differences, choose_frames, kind_of_motion, longest_shot
from nextflow_jax.data.ingest.remote import is_url, list_files, name_below, parent, read_picture, resolve_below
from nextflow_jax.errors import UserError

_RECORDS = (".jsonl", ".jsonl.gz")


class Video(NamedTuple):
    """A video that has a path of its own."""

    path: str
    kind: Literal["folder", "file", "list"]
    size: int
    """Bytes of its files, 0 where that is not known."""


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format: lists in JSON Lines by bytes; of all else, neighbours of about `unit_bytes` together."""
    _found.cache_clear()
    records, videos = _found(config.paths)
    if any(video.kind == "file" for video in videos):
        import_av()
    return [*_line_units(records, config), *_video_units(videos, config.unit_bytes)]


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format."""
    if unit.path.endswith(_RECORDS):
        yield from _read_records(unit, config)
        return
    # Every worker lists the source once, for all its units.
    videos = _found(config.paths)[1][unit.start : unit.stop]
    if [video.path for video in videos[:1]] != [unit.path] or _total(videos) != unit.size:
        raise UserError(f"{unit.path}: files of source {config.name} changed since the ingest began; start it again")
    for video in videos:
        key = key_of(config, name_below(video.path, config.paths))
        yield build(key, functools.partial(_read_video, key, video, config))


def _read_video(key: str, video: Video, config: SourceConfig) -> RawDocument:
    if video.kind == "list":
        frames = _optional_text(video.path, config).splitlines()
        return _make_document(key, _frame_files([name.strip() for name in frames], video.path, config, 0.0), config)
    stem = video.path
    if video.kind == "file":
        stem, clip = os.path.splitext(stem)[0], VideoFile(video.path, config.limits, config.video.jpeg_quality)
    else:
        rate = config.video.frames_per_second
        clip = FrameFiles(_list_frames(video.path), rate, config.limits, config.max_bytes)
    return _make_document(key, clip, config, caption=_optional_text(f"{stem}.txt", config))


def _read_records(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    for offset, line in read_lines(unit, config.max_bytes):
        by_place = key_of(config, name_below(unit.path, config.paths), offset)
        try:
            if line is None:
                raise RefusedDocument("too many bytes")
            fields = parse_object(line)
            name = optional(fields, config.column("id"))
        except RefusedDocument as refused:
            yield Drop(by_place, refused.reason)
            continue
        key = key_of(config, name) if name else by_place
        yield build(key, functools.partial(_read_record, key, fields, unit, config))


def _read_record(key: str, fields: Mapping[str, Any], unit: Unit, config: SourceConfig) -> RawDocument:
    facts = {name: optional(fields, config.column(name)) for name in ("label", "licence", "source")}
    frames, file = fields.get(config.column("frames")), fields.get(config.column("video"))
    rate = fields.get("fps") or 0.0
    if (frames is None) == (file is None) or isinstance(rate, bool) or not isinstance(rate, int | float):
        raise RefusedDocument("bad record")
    if not (rate >= 0 and math.isfinite(rate)):
        raise RefusedDocument("bad record")
    if file is not None:
        path = _resolve(file, unit.path, config)
        clip: Clip = VideoFile(path, config.limits, config.video.jpeg_quality)
    elif isinstance(frames, list):
        clip = _frame_files(frames, unit.path, config, float(rate))
    else:
        raise RefusedDocument("bad record")
    return _make_document(key, clip, config, caption=optional(fields, config.column("text")), **facts)


def _make_document(
    key: str,
    clip: Clip,
    config: SourceConfig,
    *,
    caption: str = "",
    label: str = "",
    licence: str = "",
    source: str = "",
) -> RawDocument:
    """The document of a video.

    Raises:
      RefusedDocument, RefusedImage: a frame cannot be used, there are too few, or it moves in another way than wanted.
    """
    numbers, times, motion = _choose(clip, config.video)
    segments: list[RawSegment] = [RawText(caption, "prompt")] if caption.strip() else []
    for place, data in enumerate(clip.take(numbers)):
        role = "response" if segments else "prompt"
        if place and config.video.transition:
            seconds = times[place] - times[place - 1]
            text = config.video.transition.format(seconds=seconds, frame=place + 1, motion=motion)
            segments.append(RawText(text, "prompt"))
        segments.append(picture(data, config, role))
    if len(numbers) != sum(not isinstance(segment, RawText) for segment in segments):
        raise RefusedDocument("damaged")
    return RawDocument(
        key, "frames", tuple(segments), source or config.name, licence or config.licence, label=label or motion
    )


def _choose(clip: Clip, config: VideoConfig) -> tuple[list[int], list[float], str]:
    """Numbers and times of the frames to take, and the kind of motion."""
    looks = look_through(clip, config.frames_per_second)
    cells = cell_differences(looks.thumbnails)
    motion = cells.mean(axis=(1, 2))
    start, stop = longest_shot(motion, config.cut_above)
    if stop - start < config.min_frames:
        raise RefusedDocument("few frames")
    kind = kind_of_motion(cells[start : stop - 1], config)
    if kind not in config.motions:
        raise RefusedDocument("wrong motion")
    chosen = choose_frames(motion[start : stop - 1], looks.times[start:stop], config.max_frames, config.selection)
    if len(chosen) < config.min_frames:
        raise RefusedDocument("few frames")
    places = [start + int(place) for place in chosen]
    return [looks.numbers[place] for place in places], looks.times[places].tolist(), kind


def _frame_files(names: list[Any], path: str, config: SourceConfig, rate: float) -> FrameFiles:
    paths = [_resolve(name, path, config) for name in names if name != ""]
    return FrameFiles(paths, rate or config.video.frames_per_second, config.limits, config.max_bytes)


def _resolve(name: Any, path: str, config: SourceConfig) -> str:
    """The path of a file that the list at `path` names."""
    if not isinstance(name, str):
        raise RefusedDocument("bad record")
    return resolve_below(config.image_root or parent(path), name, config.url_schemes)


def _optional_text(path: str, config: SourceConfig) -> str:
    """What a text file says, empty where there is none."""
    try:
        return decode_text(read_picture(path, config.max_bytes)).strip()
    except RefusedDocument as refused:
        if refused.reason == "missing file":
            return ""
        raise


@functools.lru_cache(maxsize=8)
def _found(patterns: tuple[str, ...]) -> tuple[list[str], list[Video]]:
    """The lists in JSON Lines, and the other videos; each sorted by path.

    Raises:
      UserError: a pattern that names no file, or there is no video.
    """
    sizes: dict[tuple[str, str], int] = {}
    records: set[str] = set()
    for path, size in itertools.chain.from_iterable(map(_list_pattern, patterns)):
        suffix = os.path.splitext(path)[1].lower()
        if path.endswith(_RECORDS):
            records.add(path)
        elif suffix in VIDEO_SUFFIXES:
            sizes[path, "file"] = max(size, 0)
        elif suffix == ".txt":
            sizes[path, "list"] = max(size, 0)
        elif suffix in SUFFIXES:
            folder = parent(path), "folder"
            sizes[folder] = sizes.get(folder, 0) + max(size, 0)
    captions = {
        f"{os.path.splitext(path)[0] if kind == 'file' else path}.txt" for path, kind in sizes if kind != "list"
    }
    videos = [Video(path, kind, size) for (path, kind), size in sizes.items() if path not in captions]
    if not videos and not records:
        raise UserError(f"source paths {', '.join(patterns)} name no video, no folder of frames and no list of frames")
    return sorted(records), sorted(videos)


def _list_pattern(pattern: str) -> Iterator[tuple[str, int]]:
    """(path, size) of the files that a pattern names, or that lie in a folder it names."""
    matches = [] if is_url(pattern) else [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    folders = [path for path in matches if os.path.isdir(path)]
    if not folders:
        yield from list_files((pattern,))
        return
    for path in matches:
        if path not in folders:
            yield path, _size(path)
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                if os.path.splitext(name)[1].lower() in SUFFIXES | VIDEO_SUFFIXES:
                    path = os.path.join(root, name)
                    yield path, _size(path)


def _size(path: str) -> int:
    """Bytes of a local file; 0 for a link to nowhere, which is found out when it is read."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def _list_frames(folder: str) -> list[str]:
    """The pictures of a folder or URL, in the natural order of their names."""
    if is_url(folder):
        paths = [path for path, _ in list_files((f"{folder}/*",))]
    else:
        paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    frames = SUFFIXES - VIDEO_SUFFIXES
    return sorted((path for path in paths if os.path.splitext(path)[1].lower() in frames), key=_natural)


def _natural(path: str) -> tuple[list[str | int], str]:
    """Orders names by the values of the numbers in them."""
    parts = re.split(r"([0-9]+)", os.path.basename(path))
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path


def _line_units(records: list[str], config: SourceConfig) -> list[Unit]:
    return line_units(dataclasses.replace(config, paths=tuple(records))) if records else []


def _total(videos: list[Video]) -> int:
    """Bytes of all of them; -1 where none is known."""
    return sum(video.size for video in videos) or -1


def _video_units(videos: list[Video], unit_bytes: int) -> list[Unit]:
    made, start, size = [], 0, 0
    for number, video in enumerate(videos, start=1):
        size += video.size
        if size >= unit_bytes or number == len(videos):
            made.append(Unit(videos[start].path, _total(videos[start:number]), start, number))
            start, size = number, 0
    return made
