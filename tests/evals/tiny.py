"""Pictures, a codec and a model made by hand, so that every figure of an evaluation can be worked out on paper."""

import numpy as np

from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.sampling.requests import GeneratedImage, GeneratedText, Result

SIZE = (8, 8)
TONES = ("", "light", "dark")
NAMES = ("hand", "foot", "ear", "nose")


def make_pictures(unseen=("eye",)):
    """Four bases in three tones, two combinations held out, validation pictures, and a twin of "foot"."""
    infos = []
    for name in NAMES:
        for tone in TONES:
            split = "heldout" if (name, tone) in (("hand", "dark"), ("foot", "light")) else "train"
            infos.append(_info(f"{name} {tone}".strip(), name, tone, split))
    infos.append(_info("paw", "paw", "", "train", pixels="foot"))
    infos += [_info(key, *f"{key} ".split(" ")[:2], "validation") for key in unseen]
    images = {info.key: _pixels(info.pixels) for info in infos}
    config = PicturesConfig(size=SIZE)
    return PictureSet(config, infos, lambda position: images[infos[position].key], {})


class ExactCodec:
    """Rebuilds pictures up to one grey level; its code is a number a picture, repeated."""

    def __init__(self):
        self.seen = {}

    def encode(self, images):
        codes = [self.seen.setdefault(image.tobytes(), len(self.seen)) for image in images]
        self.images = {code: np.frombuffer(data, np.uint8).reshape(*SIZE, 3) for data, code in self.seen.items()}
        both = np.repeat(np.array(codes, np.int32)[:, None], 2, axis=1)
        return both, both

    def decode(self, codes, size):
        return np.stack([np.where(self.images[code] < 255, self.images[code] + 1, 254) for code in codes[:, 0]])


class Pupil:
    """Answers every request as training taught it, except for pictures and prompts with the word `forgotten`."""

    def __init__(self, pictures, forgotten="nothing"):
        self.pictures, self.forgotten, self.batches = pictures, forgotten, []
        self.by_pixels = {info.image.tobytes(): info.captions["en"] for info in reversed(list(pictures))}

    def generate(self, requests, save_scales=False):
        self.batches.append(len(requests))
        return [self._answer(request, save_scales) for request in requests]

    def _answer(self, request, save_scales):
        if not request.begin_with_image:
            name = self.by_pixels[request.document[0].tobytes()]
            text = "forgotten" if self.forgotten in name else f" {name} "
            return Result((GeneratedText(text, np.zeros(1, np.int32), np.zeros(1, np.float32)),), "end")
        name = request.document[-1]
        if len(request.document) == 2:
            base = self.by_pixels[request.document[0].tobytes()].split()[0]
            name = f"{base} {name.split()[-1]}".removesuffix(" neutral")
        image = self.pictures["ear" if self.forgotten in name else name].image
        stages = (np.zeros_like(image), image) if save_scales else ()
        drawn = GeneratedImage(image, np.zeros(2, np.int32), np.zeros(2, np.float32), stages)
        return Result((drawn,), "image_limit")


def _info(key, base, tone, split, pixels=None):
    attributes = {"skin_tone": tone} if tone else {}
    return PictureInfo(key, split, {"en": key}, "body", "parts", base, base, attributes, pixels or key)


def _pixels(name):
    return np.random.default_rng(sum(map(ord, name))).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
