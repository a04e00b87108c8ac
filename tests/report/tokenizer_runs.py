"""Folders of tokenizer runs with an evaluation, written by hand, and what the tests of the report's pages share."""

import html.parser
import json

import numpy as np

from nextflow_jax.evals.outcome import Outcome, save_outcome, update_metrics

HOSTILE = '<script>alert("x")</script> & a "quoted" name'
SIZES = ("8x8", "4x8")


def pictures(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def make_run(folder, shift=0.0, pictures_name="p", seed=0, **changed):
    """A tokenizer run: its configuration, three records of metrics, an evaluation of two splits and two sizes."""
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    config = {
        "kind": "tokenizer",
        "seed": 0,
        "train": {"steps": 20, "batch_size": 4},
        "model": {"codes": 64, **changed},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [_line(step, shift) for step in (1, 10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"sizes": {size: {} for size in SIZES}, "scales": {}, "left_out": {"rfid": "rfid left out: no file"}}
    made_from = {"tokenizer": folder.name, "pictures": pictures_name, "sizes": [], "evaluation": {}}
    for split, end in (("train", "train"), ("validation", "val")):
        records, arrays = [], {}
        for i, size in enumerate(SIZES):
            height, width = map(int, size.split("x"))
            names = ["a leaf", HOSTILE]
            records += [
                {
                    "key": f"{split} {n}",
                    "caption": n,
                    "split": split,
                    "size": size,
                    "row": row,
                    "psnr": 20 + shift,
                    "ssim": 0.5,
                }
                for row, n in enumerate(names)
            ]
            arrays |= {f"{what}_{size}": pictures(i, 2, height, width) for what in ("original", "copy", "error")}
            arrays[f"stages_{size}"] = pictures(i, 2, 3, height, width)
            metrics["sizes"][size][f"psnr_{end}"] = 18.25 + shift + i
        figures = {f"psnr_{end}": 20.5 + shift, f"ssim_{end}": 0.625, f"count_{end}": 4.0}
        save_outcome(evaluation, f"tokenizer_{split}", Outcome(figures, records=records, arrays=arrays), made_from)
        metrics |= figures
        metrics["scales"][end] = [{"usage": 1.0, "perplexity": 1.0}, {"usage": 0.4375, "perplexity": 12.5}]
    update_metrics(folder, {**metrics, "codebook_usage": 0.97, "targets": {"psnr_val": 21.0}, "made_from": made_from})
    return folder


def _line(step, shift):
    scales = {f"codebook/usage/scale_{k}": 0.5 for k in range(1, 12)}
    gan = {
        "loss/generator": -0.5,
        "adversarial/logit_real": 0.3,
        "adversarial/logit_fake": -0.3,
        "codebook/revived": 2.0,
    }
    return {
        "step": step,
        "loss": 5 / step + shift,
        "psnr": 15.0 + step,
        "codebook/usage/all_scales": 0.9,
        **scales,
        **gan,
    }


class Elements(html.parser.HTMLParser):
    """Collects elements with their attributes, and checks that they are closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    """The page is well-formed, carries all its pictures and asks for nothing from outside; returns its elements."""
    elements = Elements(text)
    assert not elements.open and not {tag for tag, _ in elements.found} & {"script", "link", "iframe"}
    images = [attributes for tag, attributes in elements.found if tag == "img"]
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in images)
    assert all(a.get("href", "#").startswith("#") for _, a in elements.found)
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    return elements.found
