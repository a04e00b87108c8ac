"""Synthetic clips, and video files of them."""

import fractions

import av
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 72, 128


def texture(seed, height, width, block=8):
    """Random grey blocks, uint8 [height, width]."""
    blocks = np.random.default_rng(seed).integers(40, 216, (-(-height // block), -(-width // block)))
    return np.kron(blocks, np.ones((block, block)))[:height, :width].astype(np.uint8)


def static(count, seed=0):
    """The same picture with a little noise."""
    noise = np.random.default_rng(seed).integers(-2, 3, (count, HEIGHT, WIDTH))
    return (texture(seed, HEIGHT, WIDTH) + noise).astype(np.uint8)


def panning(steps, seed=0):
    """A camera that has moved by so many pixels along a texture before each frame but the first."""
    places = np.cumsum([0, *steps])
    wide = texture(seed, HEIGHT, WIDTH + int(places[-1]))
    return np.stack([wide[:, place : place + WIDTH] for place in places])


def square(steps, seed=0, side=16):
    """A white square that moves so many pixels to the right over a still texture before each frame but the first."""
    frames = np.repeat(texture(seed, HEIGHT, WIDTH)[None] // 2, len(steps) + 1, axis=0)
    for frame, place in zip(frames, np.cumsum([4, *steps])):
        frame[30 : 30 + side, place : place + side] = 255
    return frames


def write_video(path, frames, rate=4, codec="ffv1", pixels="gray"):
    """Grey frames as a video file; returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(rate))
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = pixels
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
            container.mux(stream.encode(picture.reformat(format=pixels)))
        container.mux(stream.encode())
    return path


def write_frames(folder, frames, name="frame{}.png"):
    """Grey frames as files in a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder
