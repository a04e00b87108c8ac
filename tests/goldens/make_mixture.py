"""Writes mixture.json: the streams and batches of mixtures by task, which later versions must give number for number.

Made at commit e28d02d, when a mixture was `weights` of tasks and nothing else; run there to make it again:

    python -m tests.goldens.make_mixture
"""

import json
import pathlib

import numpy as np

from nextflow_jax.data.index import DocumentIndex, Keys
from nextflow_jax.data.mixture import MixtureConfig, make_stream
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.plan import DocumentTable, Plan, PlanConfig

PATH = pathlib.Path(__file__).parent / "mixture.json"
TASKS = ("edit", "image_to_text", "text", "text_to_image")
WEIGHTS = {"default": (), "one": (("edit", 2.0),), "three": (("text_to_image", 6.0), ("text", 3.1), ("edit", 1.0))}
STRETCHES = ((0, 60), (9_980, 10_020), (123_456, 123_486))
SEED = 3


def make_index() -> DocumentIndex:
    """97 records, of which every seventh is the wordy one of its task."""
    number = np.arange(97)
    plain = (20 + number * 7 % 23 + 40 * (number % 7 == 0)).astype(np.int32)
    zeros = np.zeros(97, np.int32)
    keys = Keys.of(f"d{i}" for i in number)
    return DocumentIndex(
        keys=keys, task=(number % 4).astype(np.int32), tasks=TASKS, plain=plain, condition=plain // 4, context=zeros,
        source=zeros, sources=("",),
    )  # fmt: skip


def streams() -> dict[str, list[int]]:
    """Record numbers of some stretches, by mixture."""
    index, usable = make_index(), np.arange(97) % 11 > 0
    found = {}
    for name, weights in WEIGHTS.items():
        stream = make_stream(MixtureConfig(weights), index, usable, SEED)
        found[name] = [record for stretch in STRETCHES for record in stream.records(*stretch).tolist()]
    return found


def batches() -> dict[str, list[list[int]]]:
    """Rows of some global batches, by mixture: records, then for each 1 if dropped, 2 if inverted."""
    index, found = make_index(), {}
    inverted = np.where(index.task == TASKS.index("text_to_image"), index.plain, 0)
    zeros = np.zeros(97, np.int64)
    table = DocumentTable(index.plain, index.condition, index.task, index.tasks, inverted, zeros, zeros, zeros)
    for name, weights in WEIGHTS.items():
        stream = make_stream(MixtureConfig(weights), index, np.ones(97, bool), SEED)
        plan = Plan(PlanConfig(SEED, 2, 3, 128, 0.3, 0.2), stream, table, STRATEGIES["fixed_length"])
        rows = [row for n in (0, 7, 20) for row in plan.batch(n)]
        found[name] = [[*row.records.tolist(), *(row.dropped + 2 * row.inverted).tolist()] for row in rows]
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps({"streams": streams(), "batches": batches()}) + "\n")
