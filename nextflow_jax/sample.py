"""`python -m nextflow_jax.sample`: pictures and text from a bundle."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from nextflow_jax import command, compile_cache
from nextflow_jax.bundle import Bundle, load_bundle
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.sampling.documents import read_document
from nextflow_jax.sampling.messages import read_messages
from nextflow_jax.sampling.requests import Request, Result, text_to_image, think_then_draw
from nextflow_jax.sampling.resolutions import parse_resolution
from nextflow_jax.sampling.result_files import RESULT_FILE, ResultFiles
from nextflow_jax.sampling.sampler import MAX_CACHE_BYTES, Sampler
from nextflow_jax.sampling.settings import GUIDANCE_DROPS, GUIDANCE_SCHEDULES, SamplingSettings
from nextflow_jax.sampling.streaming import ImageEvent, PartialImageEvent, ResultEvent, TextEvent

DESCRIPTION = """\
Draws a picture of every --prompt, or continues each --document of texts and pictures (captions, answers, edits,
stories, examples to follow). Writes the pictures as PNG at their own size, and result.json with texts, files, seeds and
settings.

A document is a JSON file; image paths are relative to it; "generate", "settings" and their keys may be left out:
  {"segments": [{"image": "sun.png"}, {"text": "make it blue"}],
   "generate": {"begin_with_image": true, "max_images": 1, "max_text_tokens": 64, "size": "32x32",
                "max_thought_tokens": 0, "keep_thought": true},
   "settings": {"guidance": 3.0, "guidance_drops": "text"}}
max_images 0 asks for text alone (a caption, an answer); begin_with_image asks for a picture (an edit), after a thought
of at most max_thought_tokens; without it the model decides when it writes and draws, within the caps (a story).

--messages takes a chat, {"messages": [{"role": "user", "content": "..."}], "generate": ..., "settings": ...}, written
with the chat template of the bundle's tokenizer; a content may be a list of parts as {"type": "text", "text": "..."}
and {"type": "image", "image": "sun.png"}.

--size takes HEIGHTxWIDTH, a ratio WIDTH:HEIGHT or a name (square, landscape, portrait, widescreen, tall, panorama), for
which the nearest ratio of the model is used; "condition": as the prompt's last picture; "auto": the last mark such as
<size 32x48> or <size 3:2> in the text before the picture decides, the model's own text included.

Settings not given are the document's, else the bundle's. Those that take "one number a scale" read it as 1.0,0.8,0.5:
coarse to fine, the last one for all scales that follow."""

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
GUIDANCE_SETTINGS = ("guidance_schedule", "guidance_scales", "guidance_drops")


def main(arguments: Sequence[str]) -> None:
    """Samples; see --help."""
    options = _parser().parse_args(arguments)
    out = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    if options.num < 1:
        raise UserError(f"--num {options.num}: must be at least 1")
    compile_cache.enable()
    bundle = load_bundle(options.bundle)
    sampler = Sampler(bundle, max_cache_bytes=int(options.max_cache_gib * 2**30))
    requests = _requests(options, bundle)
    begin = time.perf_counter()
    if options.stream:
        events = sampler.stream(requests, options.save_scales)
        files = ResultFiles(out, requests)
        results = [_follow(event, files, len(requests) > 1) for event in events]
        results = [result for _, result in sorted(filter(None, results), key=lambda item: item[0])]
    else:
        results = sampler.generate(requests, save_scales=options.save_scales)
        files = ResultFiles(out, requests)
    seconds = time.perf_counter() - begin
    answers = files.write(results, bundle={"path": str(options.bundle), "origin": bundle.origin}, seconds=seconds)
    if not options.stream:
        for answer in answers:
            print(" ".join(next(iter(segment.values())) for segment in answer["segments"]))
    print(f"{out / RESULT_FILE}: {len(answers)} answers in {seconds:.1f} s, compilation included")


def _parser() -> argparse.ArgumentParser:
    example = '--bundle runs/quickstart/bundle --prompt "grinning face" --out /tmp/pictures'
    parser = command.command_parser("sample", DESCRIPTION, example)
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="folder that nextflow_jax.export wrote")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; may be given several times")
    question.add_argument("--document", action="append", metavar="FILE.json", help="to continue; several times too")
    question.add_argument("--messages", action="append", metavar="FILE.json", help="chat to answer; several times too")
    parser.add_argument(
        "--out", required=True, type=command.folder, metavar="DIR", help="where to write; made when it is not there"
    )
    parser.add_argument("--instruction", default="", metavar="TEXT", help="a system text before every --prompt")
    parser.add_argument("--think", type=int, metavar="N", help="write at most N tokens of thought before each picture")
    parser.add_argument("--drop_thought", action="store_true", help="leave thoughts out of the result")
    parser.add_argument("--seed", type=int, default=0, help="of the first answer to a prompt; the next ones count on")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="answers to every prompt (default 1)")
    parser.add_argument("--size", metavar="SIZE", help="of the pictures (default: the bundle's first size)")
    parser.add_argument("--save_scales", action="store_true", help="also write each picture as it is after every scale")
    parser.add_argument(
        "--stream", action="store_true", help="print text and write pictures scale by scale as they come"
    )
    parser.add_argument(
        "--max_cache_gib",
        type=float,
        default=MAX_CACHE_BYTES / 2**30,
        metavar="X",
        help="memory for keys and values; what needs more is taken in turns (default %(default)s)",
    )
    for name, meaning in PICTURE_SETTINGS.items():
        parser.add_argument(f"--{name}", type=_numbers, metavar="X[,X...]", help=f"{meaning}; one number a scale")
    for name, meaning in TEXT_SETTINGS.items():
        parser.add_argument(f"--{name}", type=_number, metavar="X", help=meaning)
    parser.add_argument("--guidance_schedule", choices=GUIDANCE_SCHEDULES, help="how guidance grows over the scales")
    parser.add_argument("--guidance_scales", type=_pair, metavar="FIRST,LAST", help="guide these scales alone, from 1")
    parser.add_argument("--guidance_drops", choices=GUIDANCE_DROPS, help="what of the prompt the unguided half lacks")
    return parser


def _number(text: str) -> float | int:
    return int(text) if text.strip().isdigit() else float(text)


def _numbers(text: str) -> float | int | tuple[float | int, ...]:
    numbers = tuple(_number(part) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def _pair(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _requests(options: argparse.Namespace, bundle: Bundle) -> list[Request]:
    defaults = bundle.defaults
    if options.messages:
        asked = [read_messages(path, bundle.text_tokenizer, defaults) for path in options.messages]
    elif options.document:
        asked = [read_document(path, defaults) for path in options.document]
    elif options.think:
        asked = [think_then_draw(prompt, instruction=options.instruction) for prompt in options.prompt]
    else:
        asked = [text_to_image(prompt, instruction=options.instruction) for prompt in options.prompt]
    changes: dict[str, Any] = {"keep_thought": False} if options.drop_thought else {}
    if options.size:
        changes["size"] = parse_resolution(options.size)
    if options.think is not None:
        changes["max_thought_tokens"] = options.think
    return [
        dataclasses.replace(request, **changes, settings=_settings(options, request, defaults), seed=options.seed + i)
        for request in asked
        for i in range(options.num)
    ]


def _settings(options: argparse.Namespace, request: Request, defaults: SamplingSettings) -> SamplingSettings:
    names = (*PICTURE_SETTINGS, *TEXT_SETTINGS, *GUIDANCE_SETTINGS)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(request.settings or defaults, **given)


def _follow(
    event: TextEvent | PartialImageEvent | ImageEvent | ResultEvent, files: ResultFiles, several: bool
) -> tuple[int, Result] | None:
    """Prints or writes an event; with several requests, a line an event. The result at the end of an answer."""
    who = f"{event.request:03d}: " if several else ""
    if isinstance(event, TextEvent):
        print(f"{who}{event.text}", end="\n" if several else "", flush=True)
    elif isinstance(event, PartialImageEvent):
        name = files.save_scale(event.request, event.segment, event.scale, event.pixels)
        print(f"{who}{name} (scale {event.scale} of {event.num_scales})", flush=True)
    elif isinstance(event, ImageEvent):
        print(f"{who}{files.save_image(event.request, event.segment, event.image.pixels)}", flush=True)
    else:
        print("" if not several else f"{who}{event.result.finish}", flush=True)
        return event.request, event.result
    return None


if __name__ == "__main__":
    run_entry_point(main)
