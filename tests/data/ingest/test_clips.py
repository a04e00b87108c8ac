import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.data.corpus.raw import RefusedDocument
from nextflow_jax.data.image_files import ImageLimits
from nextflow_jax.data.ingest import clips
from nextflow_jax.data.ingest.clips import FrameFiles, VideoFile, look_through
from tests.data.ingest.videos import HEIGHT, WIDTH, panning, write_frames, write_video

LIMITS = ImageLimits()


def open_frames(folder, count, rate=8.0):
    return FrameFiles([str(folder / f"frame{i + 1}.png") for i in range(count)], rate, LIMITS, 10**6)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(8, range(17)), (4, range(0, 17, 2)), (3, [0, 3, 6, 8, 11, 14, 16]), (99, range(17))]
)
def test_so_many_frames_a_second_are_looked_at(tmp_path, rate, wanted):
    frames = panning([2] * 16)
    file = VideoFile(str(write_video(tmp_path / "a.mkv", frames, rate=8)), LIMITS, 95)
    folder = open_frames(write_frames(tmp_path / "a", frames), 17)
    for clip in (file, folder):
        looks = look_through(clip, float(rate))
        assert looks.numbers == list(wanted)
        np.testing.assert_allclose(looks.times, np.asarray(wanted) / 8, atol=2e-3)


def test_small_pictures_of_files_and_videos_are_about_the_same(tmp_path):
    frames = panning([2] * 4)
    file = look_through(VideoFile(str(write_video(tmp_path / "a.mkv", frames, rate=8)), LIMITS, 95), 8.0).thumbnails
    folder = look_through(open_frames(write_frames(tmp_path / "a", frames), 5), 8.0).thumbnails
    assert file.shape == folder.shape == (5, 36, 64)
    assert np.abs(file.astype(int) - folder).mean() < 6


def test_taken_frames_are_those_of_their_numbers(tmp_path):
    frames = panning([2] * 16)
    file = VideoFile(str(write_video(tmp_path / "a.mkv", frames, rate=8)), LIMITS, 95)
    for number, data in zip([0, 5, 16], file.take([0, 5, 16]), strict=True):
        assert np.abs(np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int) - frames[number]).mean() < 3
    folder = write_frames(tmp_path / "a", frames)
    assert open_frames(folder, 17).take([3]) == [(folder / "frame4.png").read_bytes()]


def test_of_long_videos_fewer_frames_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "_MOST_LOOKS", 10)
    file = VideoFile(str(write_video(tmp_path / "a.mkv", panning([1] * 79), rate=8)), LIMITS, 95)
    looks = look_through(file, 8.0)
    assert 5 <= len(looks.numbers) <= 10
    assert looks.numbers == list(range(0, 80, looks.numbers[1]))


def test_memory_does_not_grow_with_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "_MOST_LOOKS", 16)

    def peak(count):
        path = write_video(tmp_path / f"{count}.mkv", panning([0] * (count - 1)), rate=8)
        clip = VideoFile(str(path), LIMITS, 95)
        tracemalloc.start()
        look_through(clip, 8.0)
        clip.take([0, count - 1])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(20)
    assert peak(600) < 1.5 * peak(60)


def turn_mp4(path, matrix):
    """Writes the display matrix of the first track, as cameras held upright do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[at : at + 36])[::4] == (1 << 16, 1 << 16, 1 << 30), "it was upright"
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30), 3),
        ((-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30), 2),
        ((0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30), 1),
    ],
)
def test_frames_of_turned_cameras_are_upright(tmp_path, matrix, turn):
    """The first matrix, of a phone held upright, turns clockwise by 90 degrees (3 times anticlockwise)."""
    frames = panning([2] * 4)
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", pixels="yuv420p")
    turn_mp4(path, matrix)
    (data,) = VideoFile(str(path), LIMITS, 95).take([0])
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    assert np.abs(picture - np.rot90(frames[0], turn)).mean() < 12


def test_transparent_frames_are_on_white(tmp_path):
    left, right = Image.new("RGBA", (WIDTH, HEIGHT)), Image.new("RGBA", (WIDTH, HEIGHT))
    left.paste("red", (0, 0, 32, HEIGHT))
    right.paste("red", (64, 0, WIDTH, HEIGHT))
    left.save(tmp_path / "a.gif", save_all=True, append_images=[right], duration=250, disposal=2)
    (data,) = VideoFile(str(tmp_path / "a.gif"), LIMITS, 95).take([1])
    picture = Image.open(io.BytesIO(data))
    assert (
        min(picture.getpixel((50, 30))) > 240
        and picture.getpixel((100, 30))[0] > 240 > 60 > picture.getpixel((100, 30))[1]
    )


def test_a_video_without_frames_is_refused():
    with pytest.raises(RefusedDocument, match="few frames"):
        look_through(FrameFiles([], 2.0, LIMITS, 10**6), 2.0)
