import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.config import preflight
from nextflow_jax.data.corpus.raw import Drop, RawImage, RawText
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.image_files import ImageLimits
from nextflow_jax.data.ingest import video
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig, VideoConfig
from nextflow_jax.data.ingest.driver import ingest
from nextflow_jax.errors import UserError
from tests.data.ingest.videos import HEIGHT, WIDTH, panning, square, static, write_frames, write_video

EVERY_FRAME = VideoConfig(
    frames_per_second=4.0, max_frames=50, selection="uniform", motions=("static", "camera", "object")
)


def source(*paths, **settings):
    config = SourceConfig(name="clips", format="video", paths=tuple(map(str, paths)), task="frames", **settings)
    preflight(config)
    return config


def read_all(config):
    return [document for unit in video.units(config) for document in video.read(unit, config)]


def read_one(*paths, **settings):
    (document,) = read_all(source(*paths, **settings))
    return document


def pictures(document):
    return [segment for segment in document.segments if isinstance(segment, RawImage)]


def texts(document):
    return [segment.text for segment in document.segments if isinstance(segment, RawText)]


def grey(segment):
    return np.asarray(Image.open(io.BytesIO(segment.data)).convert("L")).astype(int)


def test_a_folder_of_frames_becomes_frames_with_transitions_between(tmp_path):
    """A camera moves 6 pixels a frame: 13 frames at 2 a second, of which every third is taken."""
    frames = panning([6] * 12)
    document = read_one(write_frames(tmp_path / "a", frames))
    assert (document.task, document.source, document.label) == ("frames", "clips", "camera")
    assert [segment.role for segment in document.segments] == ["prompt"] + ["prompt", "response"] * 4
    assert texts(document) == ["1.5 seconds later:"] * 4
    for picture, wanted in zip(pictures(document), frames[::3], strict=True):
        assert picture.size == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(grey(picture), wanted)
    first = (tmp_path / "a" / "frame1.png").read_bytes()
    assert pictures(document)[0].data == first, "frames that are files stay as they are"


def test_a_caption_is_the_prompt_and_every_frame_a_response(tmp_path):
    folder = write_frames(tmp_path / "a", panning([6] * 12))
    (tmp_path / "a.txt").write_text(" a pan over a wall\n")
    document = read_one(folder)
    assert document.segments[0] == RawText("a pan over a wall", "prompt")
    assert {picture.role for picture in pictures(document)} == {"response"}


def test_frames_are_in_the_natural_order_of_their_names(tmp_path):
    """frame10 comes after frame9, and a file that is no picture is no frame."""
    frames = panning([6] * 11)
    folder = write_frames(tmp_path / "a", frames)
    (folder / "notes.json").write_text("{}")
    found = pictures(read_one(folder, video=EVERY_FRAME))
    np.testing.assert_array_equal([grey(one) for one in found], frames)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "most"),
    [
        ("a.mkv", "ffv1", "gray", 3),
        ("a.mp4", "libx264", "yuv420p", 12),
        ("a.webm", "libvpx", "yuv420p", 12),
        ("a.gif", "gif", "gray", 3),
    ],
)
def test_video_files_give_their_frames(tmp_path, name, codec, pixels, most):
    frames = panning([6] * 12)
    document = read_one(write_video(tmp_path / name, frames, codec=codec, pixels=pixels), video=EVERY_FRAME)
    assert document.key == f"clips/{name}"
    found = pictures(document)
    assert len(found) == 13 and texts(document) == ["0.2 seconds later:"] * 12
    for picture, wanted in zip(found, frames):
        assert picture.size == (HEIGHT, WIDTH) and Image.open(io.BytesIO(picture.data)).format == "JPEG"
        assert np.abs(grey(picture) - wanted).mean() < most


def test_frame_rates_and_choice_by_motion_in_a_video_file(tmp_path):
    """Two seconds of slow motion and one of fast motion, looked at 4 times a second of 8 frames."""
    steps = [1] * 16 + [6] * 8
    path = write_video(tmp_path / "a.mkv", square(steps, side=24), rate=8)
    document = read_one(path, video=VideoConfig(max_frames=3, frames_per_second=4.0))
    assert document.label == "object"
    places = [int(np.flatnonzero(grey(picture)[42] > 240)[0]) for picture in pictures(document)]
    np.testing.assert_allclose(places, [4, 36, 68], atol=6)
    seconds = [float(text.split()[0]) for text in texts(document)]
    assert seconds[0] > 2 * seconds[1] and abs(sum(seconds) - 3.0) < 0.2


def test_only_the_longest_shot_is_kept(tmp_path):
    frames = np.concatenate([panning([3] * 4) // 3, 255 - panning([3] * 8) // 3])
    document = read_one(write_frames(tmp_path / "a", frames), video=dataclasses.replace(EVERY_FRAME, max_frames=20))
    np.testing.assert_array_equal([grey(one) for one in pictures(document)], frames[5:])


@pytest.mark.parametrize(
    ("frames", "settings", "reason"),
    [
        (static(6), VideoConfig(), "wrong motion"),
        (panning([6] * 5), VideoConfig(motions=("object",)), "wrong motion"),
        (square([6] * 5), VideoConfig(motions=("camera", "static")), "wrong motion"),
        (panning([6] * 5), VideoConfig(min_frames=7, max_frames=9), "few frames"),
        (panning([6]), VideoConfig(min_frames=3), "few frames"),
    ],
)
def test_videos_that_are_not_wanted_are_dropped(tmp_path, frames, settings, reason):
    assert read_one(write_frames(tmp_path / "a", frames), video=settings) == Drop("clips/a", reason)


def test_the_transition_may_name_frame_and_motion_or_be_left_out(tmp_path):
    folder = write_frames(tmp_path / "a", square([6] * 8))
    document = read_one(folder, video=VideoConfig(max_frames=3, transition="{frame}: {motion}"))
    assert texts(document) == ["2: object", "3: object"]
    assert texts(read_one(folder, video=VideoConfig(transition=""))) == []


def write_mixture(root):
    """Two folders, a video file with a caption, and a list, of 13 frames each."""
    frames = panning([6] * 12)
    write_frames(root / "b" / "deep", frames)
    write_frames(root / "a", square([5] * 12), name="{}.jpg")
    write_video(root / "c.mkv", frames)
    (root / "c.txt").write_text("a wall")
    (root / "d.txt").write_text("".join(f"a/{number}.jpg\n" for number in range(1, 14)))
    (root / "a.txt").write_text("a square")
    return root


def test_folders_files_lists_and_captions_side_by_side(tmp_path):
    root = write_mixture(tmp_path / "root")
    documents = read_all(source(root / "*"))
    assert [one.key for one in documents] == ["clips/a", "clips/b/deep", "clips/c.mkv", "clips/d.txt"]
    assert [texts(one)[0] for one in documents][::2] == ["a square", "a wall"]
    in_folder = read_all(source(root))
    assert [one.segments for one in in_folder] == [one.segments for one in documents[:3]]
    by_frames = read_all(source(root / "**" / "*.[jp][pn]g"))
    assert [one.segments for one in by_frames] == [one.segments for one in documents[:2]]


def test_urls_give_the_same(tmp_path):
    root = write_mixture(tmp_path / "root")
    local = read_all(source(root / "**" / "*.*"))
    remote = read_all(source(f"file://{root}/**/*.*"))
    assert len(local) == 4
    assert [one.segments for one in remote] == [one.segments for one in local]
    assert [one.key for one in remote] == [one.key for one in local]


def test_units_hold_neighbours_and_read_the_same_documents(tmp_path):
    root = write_mixture(tmp_path / "root")
    whole = source(root / "*")
    small = dataclasses.replace(whole, unit_bytes=1)
    assert len(video.units(whole)) == 1 and len(video.units(small)) == 4
    assert read_all(small) == read_all(whole)


def test_files_that_change_during_an_ingest_are_noticed(tmp_path):
    root = write_mixture(tmp_path / "root")
    config = source(root / "*", unit_bytes=1)
    units = video.units(config)
    write_frames(root / "0", panning([6] * 3))
    video._found.cache_clear()
    with pytest.raises(UserError, match="changed since the ingest began"):
        list(video.read(units[0], config))


def write_records(tmp_path, *records):
    path = tmp_path / "videos.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_lists_in_json_lines(tmp_path):
    frames = panning([6] * 12)
    write_frames(tmp_path / "a", frames)
    write_video(tmp_path / "b.mkv", frames)
    names = [f"a/frame{number}.png" for number in range(1, 14)]
    facts = {"label": "walls", "licence": "CC0", "source": "film"}
    path = write_records(
        tmp_path,
        {"id": 7, "frames": names, "fps": 4, "text": "a pan", **facts},
        {"video": "b.mkv"},
        {"id": "twice as fast", "frames": names},
    )
    first, second, third = read_all(source(path))
    assert (first.key, first.label, first.licence, first.source) == ("clips/7", "walls", "CC0", "film")
    assert texts(first)[0] == "a pan" and second.key.startswith("clips/videos.jsonl/")
    assert pictures(second)[0].size == (HEIGHT, WIDTH) and second.label == "camera"
    assert sum(float(text.split()[0]) for text in texts(first)[1:]) == pytest.approx(3.0, abs=0.2)
    assert sum(float(text.split()[0]) for text in texts(third)) == pytest.approx(6.0, abs=0.2)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"frames": ["../secret.png"] * 3}, "unsafe path"),
        ({"frames": ["/etc/passwd"] * 3}, "unsafe path"),
        ({"video": "../b.mkv"}, "unsafe path"),
        ({"video": "concat:a|b"}, "unsafe path"),
        ({"frames": ["ftp://host/a.png"]}, "unsafe path"),
        ({"frames": ["none.png", "none.png"]}, "missing file"),
        ({"video": "none.mkv"}, "missing file"),
        ({"frames": []}, "few frames"),
        ({"frames": ["videos.jsonl"] * 2}, "not an image"),
        ({"frames": [1, 2]}, "bad record"),
        ({"frames": "a.png"}, "bad record"),
        ({"video": "a.mkv", "frames": ["a.png"]}, "bad record"),
        ({"text": "neither"}, "bad record"),
        ({"video": "a.mkv", "fps": -1}, "bad record"),
        ({"video": "a.mkv", "fps": "4"}, "bad record"),
        ({"video": "videos.jsonl"}, "damaged"),
    ],
)
def test_broken_records_are_dropped_with_their_reason(tmp_path, record, reason):
    assert read_one(write_records(tmp_path, {"id": "x", **record})) == Drop("clips/x", reason)


def test_damaged_files_are_dropped_and_the_others_read(tmp_path):
    frames = panning([6] * 12)
    write_video(tmp_path / "good.mkv", frames)
    whole = write_video(tmp_path / "whole.mp4", frames, codec="libx264", pixels="yuv420p").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.webm").write_bytes(np.random.default_rng(0).bytes(9000))
    write_frames(tmp_path / "folder", frames)
    picture = (tmp_path / "folder" / "frame5.png").read_bytes()
    (tmp_path / "folder" / "frame5.png").write_bytes(picture[: len(picture) // 2])
    outcomes = {
        (one.key.removeprefix("clips/")): one.reason if isinstance(one, Drop) else "kept"
        for one in read_all(source(f"{tmp_path}/*"))
    }
    assert outcomes == {
        "good.mkv": "kept",
        "whole.mp4": "kept",
        "half.mp4": "damaged",
        "empty.mp4": "damaged",
        "noise.webm": "damaged",
        "folder": "damaged",
    }


def test_a_playlist_in_a_video_s_clothes_opens_no_other_file(tmp_path):
    secret = write_video(tmp_path / "secret.ts", panning([6] * 12), codec="mpeg2video", pixels="yuv420p", rate=25)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(playlist)
    assert read_one(tmp_path / "a.mp4", video=EVERY_FRAME) == Drop("clips/a.mp4", "damaged")


def test_videos_of_too_many_pixels_are_dropped(tmp_path):
    path = write_video(tmp_path / "a.mkv", panning([6] * 12))
    limits = ImageLimits(max_pixels=HEIGHT * WIDTH - 1)
    assert read_one(path, limits=limits) == Drop("clips/a.mkv", "too large")
    assert isinstance(read_one(path, limits=ImageLimits(max_pixels=HEIGHT * WIDTH)).segments[0], RawImage)


def test_captions_that_are_not_utf_8_drop_the_video(tmp_path):
    path = write_video(tmp_path / "a.mkv", panning([6] * 12))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert read_one(path) == Drop("clips/a.mkv", "not utf-8")


def test_paths_without_videos_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UserError, match="names no file"):
        video.units(source(tmp_path / "none*"))
    for path in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(UserError, match="name no video"):
            video.units(source(path))


def test_without_pyav_folders_work_and_files_say_what_to_install(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / "a", panning([6] * 12))
    path = write_video(tmp_path / "a.mkv", panning([6] * 12))
    monkeypatch.setitem(sys.modules, "av", None)
    assert pictures(read_one(folder))
    with pytest.raises(UserError, match=r"nextflow_jax\[video\]"):
        video.units(source(path))


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("min_frames", {"min_frames": 6}),
        ("frames_per_second", {"frames_per_second": 0.0}),
        ("selection", {"selection": "movement"}),
        ("motions", {"motions": ()}),
        ("motions", {"motions": ("zoom",)}),
        ("cell_changes", {"cell_changes": 2.0}),
        ("jpeg_quality", {"jpeg_quality": 0}),
        ("transition", {"transition": "{minutes}"}),
        ("transition", {"transition": "{seconds"}),
    ],
)
def test_settings_that_cannot_be_are_refused(field, settings):
    with pytest.raises(UserError, match=f"video.{field}"):
        source("a", video=VideoConfig(**settings))


def test_videos_become_a_corpus(tmp_path):
    root = write_mixture(tmp_path / "root")
    write_frames(root / "still", static(5))
    config = IngestConfig(sources=(source(root / "*"),), validation_share=0.0, workers=1)
    manifest = ingest(config, tmp_path / "out").manifest
    train = open_corpus(tmp_path / "out").source("train")
    assert [train[i].task for i in range(len(train))] == ["frames"] * 4
    assert manifest.dropped == {"clips": {"wrong motion": 1}}
