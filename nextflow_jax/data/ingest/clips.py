"""The frames of a video: looked at one by one as small grey pictures, a few of them taken out as encoded pictures.

Frames are files of their own, or a video file that PyAV decodes. Memory does not grow with the length of a video: of
a long one fewer frames a second are looked at, and what is taken out is decoded a second time.
"""

import contextlib
import importlib
import io
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextflow_jax.data.corpus.raw import RefusedDocument
from nextflow_jax.data.image_files import ImageLimits, RefusedImage, flatten, read_image, read_size
from nextflow_jax.data.ingest.motion import Thumbnails, thumbnail_size
from nextflow_jax.data.ingest.remote import open_file, read_picture
from nextflow_jax.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"})
"""Files with these endings are taken for videos."""

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
"""What PyAV may take a file for: none of the formats that open other files, such as playlists."""
_MOST_LOOKS = 4096
"""Small pictures held at once."""
_BACKGROUND = "#ffffff"
_USUAL_RATE = 25.0
"""Frames a second of files that do not say."""
_UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

T = TypeVar("T")


@runtime_checkable
class Clip(Protocol):
    """A video."""

    def look(self, rate: float) -> Iterator[tuple[int, float, UInt8[np.ndarray, "height width"]]]:
        """(number, seconds from the first, small grey picture) of at most `rate` frames a second, in order.

        Raises:
          RefusedDocument, RefusedImage: it cannot be decoded.
        """
        ...

    def take(self, numbers: Sequence[int]) -> list[bytes]:
        """Encoded pictures of the frames of these ascending numbers.

        Raises:
          RefusedDocument, RefusedImage: as above.
        """
        ...


class Looks(NamedTuple):
    """What was seen of a video."""

    numbers: list[int]
    times: Float[np.ndarray, "frames"]
    thumbnails: Thumbnails


def look_through(clip: Clip, rate: float) -> Looks:
    """Goes through a video once, looking at `rate` frames a second, or fewer where there are very many.

    Raises:
      RefusedDocument, RefusedImage: it cannot be decoded; "few frames" when there is none.
    """
    seen: list[tuple[int, float, UInt8[np.ndarray, "height width"]]] = []
    step = 1
    for turn, frame in enumerate(clip.look(rate)):
        if turn % step == 0:
            seen.append(frame)
        if len(seen) == _MOST_LOOKS:
            del seen[1::2]
            step *= 2
    if not seen:
        raise RefusedDocument("few frames")
    numbers, times, thumbnails = zip(*seen)
    return Looks(list(numbers), np.asarray(times, np.float64), np.stack(thumbnails))


class FrameFiles:
    """A video whose frames are files or URLs.

    Args:
      paths: of the frames, in order.
      rate: frames a second.
      limits: of pictures.
      max_bytes: of one picture.
    """

    def __init__(self, paths: Sequence[str], rate: float, limits: ImageLimits, max_bytes: int) -> None:
        self._paths, self._rate, self._limits, self._max_bytes = paths, rate, limits, max_bytes

    def look(self, rate: float) -> Iterator[tuple[int, float, UInt8[np.ndarray, "height width"]]]:
        """See Clip."""
        size = None
        timed = ((number / self._rate, number) for number in range(len(self._paths)))
        for time, number in _sampled(timed, rate):
            data = read_picture(self._paths[number], self._max_bytes)
            size = size or thumbnail_size(read_size(data, self._limits))
            pixels = read_image(data, size, _BACKGROUND, self._limits)
            yield number, time, np.asarray(Image.fromarray(pixels).convert("L"))

    def take(self, numbers: Sequence[int]) -> list[bytes]:
        """See Clip."""
        return [read_picture(self._paths[number], self._max_bytes) for number in numbers]


class VideoFile:
    """A video file or URL.

    Args:
      path: of the file.
      limits: of its frames' sizes.
      quality: of the JPEGs that frames become, 1 to 100.
    """

    def __init__(self, path: str, limits: ImageLimits, quality: int) -> None:
        self._path, self._limits, self._quality = path, limits, quality

    def look(self, rate: float) -> Iterator[tuple[int, float, UInt8[np.ndarray, "height width"]]]:
        """See Clip."""
        size = None
        with self._decoding() as frames:
            for time, (number, frame) in _sampled(_from_zero(frames), rate):
                size = size or thumbnail_size((frame.height, frame.width))
                small = frame.reformat(width=size[1], height=size[0], format="gray", interpolation="AREA")
                yield number, time, small.to_ndarray()

    def take(self, numbers: Sequence[int]) -> list[bytes]:
        """See Clip."""
        wanted, taken = set(numbers), []
        with self._decoding() as frames:
            for number, _, frame in frames:
                if number in wanted:
                    taken.append(self._encode(frame))
                    if len(taken) == len(wanted):
                        break
        return taken

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[Iterator[tuple[int, float, Any]]]:
        """(number, seconds, frame) of all frames; what goes wrong with the file leaves as a refusal."""
        av = import_av()
        try:
            # A file object and few formats: names and contents of files cannot make FFmpeg open anything else.
            with open_file(self._path) as file:
                if not file.peek(1):
                    raise RefusedDocument("damaged")
                with av.open(file, options={"format_whitelist": _FORMATS}) as container:
                    if not container.streams.video:
                        raise RefusedDocument("damaged")
                    yield self._frames(container, container.streams.video[0])
        except FileNotFoundError as error:
            raise RefusedDocument("missing file") from error
        except av.FFmpegError as error:
            raise RefusedDocument("damaged") from error
        except (UserError, OSError) as error:
            raise RefusedDocument("unreadable source") from error

    def _frames(self, container: Any, stream: Any) -> Iterator[tuple[int, float, Any]]:
        # Ingest has a process a core already.
        stream.codec_context.thread_count = 1
        self._refuse_size(stream.codec_context)
        rate = float(stream.average_rate or _USUAL_RATE)
        for number, frame in enumerate(container.decode(stream)):
            self._refuse_size(frame)
            yield number, number / rate if frame.time is None else frame.time, frame

    def _refuse_size(self, frame: Any) -> None:
        if frame.width * frame.height > self._limits.max_pixels:
            raise RefusedImage(pathlib.Path(self._path), "too large")

    def _encode(self, frame: Any) -> bytes:
        if any(component.is_alpha for component in frame.format.components):
            picture = flatten(Image.fromarray(frame.to_ndarray(format="rgba")), _BACKGROUND)
        else:
            picture = frame.to_image()
        if turn := _UPRIGHT.get(frame.rotation % 360):
            picture = picture.transpose(turn)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=self._quality)
        return file.getvalue()


def import_av() -> ModuleType:
    """PyAV.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        needs = "video files need PyAV, which is not installed"
        raise UserError(f"{needs}; pip install 'nextflow_jax[video]', or give folders of frames") from error


def _sampled(timed: Iterable[tuple[float, T]], rate: float) -> Iterator[tuple[float, T]]:
    """The first at or after every multiple of 1 / rate seconds."""
    last = -1
    for time, item in timed:
        turn = int(time * rate + 1e-6)
        if turn > last:
            last = turn
            yield time, item


def _from_zero(frames: Iterable[tuple[int, float, Any]]) -> Iterator[tuple[float, tuple[int, Any]]]:
    start = None
    for number, time, frame in frames:
        start = time if start is None else start
        yield time - start, (number, frame)
