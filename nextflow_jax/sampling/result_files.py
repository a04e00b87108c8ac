"""Answers as files: pictures as PNG at their own size, result.json with texts, file names, seeds and settings."""

import dataclasses
import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from PIL import Image

from nextflow_jax.sampling.requests import GeneratedImage, Picture, Request, Result

RESULT_FILE = "result.json"


class ResultFiles:
    """The files of a list of requests in one folder.

    000.png                 the picture of request 0; 000_02.png: its segment 2, where more pictures than one may come
    000_scale1.png ...      the picture after each scale
    """

    def __init__(self, out: pathlib.Path, requests: Sequence[Request]) -> None:
        """Makes the folder, with its parents."""
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._requests = requests
        self._scales: dict[str, list[str]] = defaultdict(list)

    def save_image(self, request: int, segment: int, pixels: Picture) -> str:
        """Writes a picture; the name of its file."""
        return self._save(pixels, self._stem(request, segment))

    def save_scale(self, request: int, segment: int, scale: int, pixels: Picture) -> str:
        """Writes a picture as it stands after a scale, counted from 1; the name of its file."""
        stem = self._stem(request, segment)
        name = self._save(pixels, f"{stem}_scale{scale}")
        if name not in self._scales[stem]:
            self._scales[stem].append(name)
        return name

    def write(self, results: Sequence[Result], **about: Any) -> list[dict[str, Any]]:
        """Writes all pictures and result.json, with what is said `about` the run; the entries of the answers."""
        answers = [self._describe(i, result) for i, result in enumerate(results)]
        content = json.dumps({**about, "answers": answers}, indent=1, ensure_ascii=False)
        (self._out / RESULT_FILE).write_text(content + "\n", encoding="utf-8")
        return answers

    def _describe(self, index: int, result: Result) -> dict[str, Any]:
        request, segments = self._requests[index], []
        for position, segment in enumerate(result.segments):
            if isinstance(segment, GeneratedImage):
                segments.append(self._write_image(index, position, segment))
            elif segment.text:
                segments.append({"thought" if segment.is_thought else "text": segment.text})
        return {
            "document": [item if isinstance(item, str) else f"picture of {item.shape}" for item in request.document],
            "seed": request.seed,
            "settings": None if request.settings is None else dataclasses.asdict(request.settings),
            "finish": result.finish,
            "segments": segments,
        }

    def _write_image(self, request: int, segment: int, image: GeneratedImage) -> dict[str, Any]:
        for k, pixels in enumerate(image.partial, start=1):
            self.save_scale(request, segment, k, pixels)
        entry: dict[str, Any] = {"image": self.save_image(request, segment, image.pixels)}
        scales = self._scales.get(self._stem(request, segment))
        return {**entry, "scales": scales} if scales else entry

    def _stem(self, request: int, segment: int) -> str:
        several = self._requests[request].max_images > 1
        return f"{request:03d}_{segment:02d}" if several else f"{request:03d}"

    def _save(self, pixels: Picture, stem: str) -> str:
        name = f"{stem}.png"
        Image.fromarray(pixels).save(self._out / name)
        return name
