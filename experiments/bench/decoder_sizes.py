"""What both sides of the comparison with PyTorch share: sizes, settings, data, and how a side obeys the driver.

Imports neither JAX nor PyTorch: each side runs in an interpreter of its own, which may lack the other's.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

BOS, BOI = 1, 3
"""Places of these specials after the text ids; those of nextflow_jax/vocabulary.py."""
SPECIALS = 5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The decoder and its batch. The default has 10.7M parameters; 155 codes are VAR's ladder up to 8."""

    layers: int = 8
    width: int = 256
    heads: int = 4
    head_size: int = 64
    mlp_width: int = 1024
    ladder: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    codes: int = 4096
    code_dim: int = 32
    text_size: int = 123
    """With the specials and the codes 4224, a multiple of 128: no padded entries."""
    rope_sections: tuple[int, int, int] = (8, 12, 12)
    rope_base: float = 100.0
    rope_extent: float = 64.0
    norm_eps: float = 1e-6
    prompt: int = 16
    """Positions of a prompt: <bos> and text."""
    rows: int = 16
    """Of a training batch."""

    @property
    def vocabulary(self) -> int:
        """Text ids, specials, codes."""
        return self.text_size + SPECIALS + self.codes

    @property
    def cells(self) -> tuple[int, ...]:
        """Codes of each scale."""
        return tuple(side**2 for side in self.ladder)

    @property
    def tokens(self) -> int:
        """Codes of a picture, and positions of a training row: <boi> predicts the first."""
        return sum(self.cells)


SIZES = {
    "issue": Sizes(),
    "tiny": Sizes(layers=2, width=32, heads=2, head_size=16, mlp_width=48, ladder=(1, 2, 3), codes=59, code_dim=6,
                  text_size=64, rope_sections=(2, 3, 3), prompt=4, rows=3),
}  # fmt: skip
"""issue: the sizes that were asked for; tiny: to see that everything runs."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Both sides' optimizer: clipped to a global norm, decay on matrices alone (not on tables, gains and biases)."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Draw:
    """One way of sampling: pictures at once, guidance (1 = none) and filters (0 and 1.0 = none)."""

    batch: int
    guidance: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def guided(self) -> bool:
        """Whether an unguided half is computed along."""
        return self.guidance != 1.0


FILTERS = {"top_k": 900, "top_p": 0.95}
"""The settings of VAR's own script."""


def training_codes(sizes: Sizes) -> np.ndarray:
    """Codes of a batch of pictures [rows, tokens]: what is seen and what is to be predicted."""
    return np.random.default_rng(0).integers(0, sizes.codes, (sizes.rows, sizes.tokens)).astype(np.int32)


def prompts(sizes: Sizes, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Guided and unguided prompts [batch, prompt]: of one length, so that no side needs to mask padding."""
    text = np.random.default_rng(1).integers(1, sizes.text_size, (batch, sizes.prompt - 1))
    begin = np.full((batch, 1), sizes.text_size + BOS)
    guided = np.concatenate([begin, text], axis=1).astype(np.int32)
    unguided = np.concatenate([begin, np.zeros_like(text)], axis=1).astype(np.int32)
    return guided, unguided


class Side(Protocol):
    """A decoder that the driver measures. What it has in memory between calls is its own matter."""

    def describe(self) -> dict[str, Any]:
        """Versions, threads, parameters."""

    def train(self, seconds: float) -> list[float]:
        """Trains for about this long; seconds of every step, the batch's way to the device included."""

    def sample(self, draw: Draw, seconds: float) -> list[float]:
        """Samples for about this long; seconds of every batch, from prompts to codes in NumPy."""


def repeat(step: Callable[[], Any], seconds: float, least: int = 3) -> list[float]:
    """Seconds of each of as many calls as fit, at least `least`."""
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken


def serve(make_side: Callable[[argparse.Namespace, Sizes], Side], arguments: list[str] | None = None) -> None:
    """Makes a side and does what the driver says: one JSON object a line in, one a line out, until the input ends.

    In: {"do": method, ...its arguments}; out: {"result": ...} or {"error": one line}.
    """
    parser = argparse.ArgumentParser(description="One side of experiments.bench.against_torch, which starts it.")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="issue")
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--path", default="", help="of VAR's repository")
    options = parser.parse_args(arguments)
    # Before the libraries start their threads, so that these count the cores they may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.cores)
    with contextlib.redirect_stdout(sys.stderr):
        side = make_side(options, SIZES[options.sizes])
        for line in sys.stdin:
            answer = _obey(side, json.loads(line))
            print(json.dumps(answer), file=sys.__stdout__, flush=True)


def _obey(side: Side, order: dict[str, Any]) -> dict[str, Any]:
    method = order.pop("do")
    if "draw" in order:
        order["draw"] = Draw(**order["draw"])
    try:
        return {"result": getattr(side, method)(**order)}
    except Exception as error:  # the driver says which side failed, and may go on without it
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
