"""`python -m nextflow_jax.sample`: pictures and text from a bundle."""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from nextflow_jax import command, compile_cache
from nextflow_jax.bundle import load_bundle
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.sampling.requests import (
    GeneratedImage,
    Picture,
    Request,
    Result,
    parse_size,
    read_document,
    text_to_image,
)
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.settings import SamplingSettings

RESULT_FILE = "result.json"

DESCRIPTION = """\
Draws a picture of every --prompt, or continues a --document of texts and pictures (captions, edits, stories). Writes
the pictures as PNG at their own size, and result.json with texts, files, seeds and settings.

A document is a JSON file; image paths are relative to it; "generate" and each of its keys may be left out:
  {"segments": [{"text": "make it blue"}, {"image": "sun.png"}],
   "generate": {"max_images": 1, "max_text_tokens": 64, "size": "32x32", "begin_with_image": true}}

Settings not given are the bundle's. Those that take "one number a scale" read it as 1.0,0.8,0.5: coarse to fine, the
last one for all scales that follow."""

PICTURE_SETTINGS = {
    "guidance": "classifier-free guidance; 1 or 0: off",
    "temperature": "of codes; 0: the most likely one",
    "top_k": "candidates kept for each code; 0: all",
    "top_p": "probability kept for each code, in (0, 1]",
}
TEXT_SETTINGS = {
    "text_temperature": "of text tokens; 0: the most likely one",
    "text_top_k": "candidates kept for each text token; 0: all",
    "text_top_p": "probability kept for each text token",
}


def main(arguments: Sequence[str]) -> None:
    """Samples; see --help."""
    options = _parser().parse_args(arguments)
    out = pathlib.Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    if options.num < 1:
        raise UserError(f"--num {options.num}: must be at least 1")
    compile_cache.enable()
    bundle = load_bundle(options.bundle)
    requests = _requests(options, _settings(options, bundle.defaults))
    sampler = Sampler(bundle)
    begin = time.perf_counter()
    results = sampler.generate(requests, save_scales=options.save_scales)
    seconds = time.perf_counter() - begin
    out.mkdir(parents=True, exist_ok=True)
    answers = [_write(result, request, i, out) for i, (request, result) in enumerate(zip(requests, results))]
    report = {"bundle": {"path": str(options.bundle), "origin": bundle.origin}, "seconds": seconds, "answers": answers}
    (out / RESULT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for answer in answers:
        print(" ".join(segment.get("text") or segment.get("image", "") for segment in answer["segments"]))
    print(f"{out / RESULT_FILE}: {len(answers)} answers in {seconds:.1f} s, compilation included")


def _parser() -> argparse.ArgumentParser:
    example = '--bundle runs/quickstart/bundle --prompt "grinning face" --out /tmp/pictures'
    parser = command.command_parser("sample", DESCRIPTION, example)
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="folder that nextflow_jax.export wrote")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; may be given several times")
    question.add_argument("--document", metavar="FILE.json", help="a document to continue")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; made when it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of the first answer to a prompt; the next ones count on")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="answers to every prompt (default 1)")
    parser.add_argument("--size", metavar="HxW", help="of the pictures, in pixels (default: the bundle's first size)")
    parser.add_argument("--save_scales", action="store_true", help="also write each picture as it is after every scale")
    for name, meaning in PICTURE_SETTINGS.items():
        parser.add_argument(f"--{name}", type=_numbers, metavar="X[,X...]", help=f"{meaning}; one number a scale")
    for name, meaning in TEXT_SETTINGS.items():
        parser.add_argument(f"--{name}", type=_number, metavar="X", help=meaning)
    return parser


def _number(text: str) -> float | int:
    return int(text) if text.strip().isdigit() else float(text)


def _numbers(text: str) -> float | int | tuple[float | int, ...]:
    numbers = tuple(_number(part) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def _settings(options: argparse.Namespace, defaults: SamplingSettings) -> SamplingSettings:
    given = {name: getattr(options, name) for name in (*PICTURE_SETTINGS, *TEXT_SETTINGS)}
    return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _requests(options: argparse.Namespace, settings: SamplingSettings) -> list[Request]:
    if options.document:
        asked = [read_document(options.document)]
    else:
        asked = [text_to_image(prompt) for prompt in options.prompt]
    if options.size:
        asked = [dataclasses.replace(request, size=parse_size(options.size)) for request in asked]
    return [
        dataclasses.replace(request, settings=settings, seed=options.seed + i)
        for request in asked
        for i in range(options.num)
    ]


def _write(result: Result, request: Request, index: int, out: pathlib.Path) -> dict[str, Any]:
    """Writes the pictures of one answer; its entry of result.json."""
    segments: list[dict[str, Any]] = []
    for position, segment in enumerate(result.segments):
        if isinstance(segment, GeneratedImage):
            stem = f"{index:03d}" if len(result.images) == 1 else f"{index:03d}_{position:02d}"
            files = [_save(picture, out / f"{stem}_scale{k + 1}.png") for k, picture in enumerate(segment.partial)]
            entry = {"image": _save(segment.pixels, out / f"{stem}.png")}
            segments.append({**entry, "scales": files} if files else entry)
        elif segment.text:
            segments.append({"text": segment.text})
    return {
        "document": [item if isinstance(item, str) else f"picture of {item.shape}" for item in request.document],
        "seed": request.seed,
        "settings": dataclasses.asdict(request.settings),
        "finish": result.finish,
        "segments": segments,
    }


def _save(picture: Picture, path: pathlib.Path) -> str:
    Image.fromarray(picture).save(path)
    return path.name


if __name__ == "__main__":
    run_entry_point(main)
