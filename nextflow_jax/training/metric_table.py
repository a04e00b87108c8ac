"""What every name in metrics.jsonl means: one table, read by the report and by whoever compares runs."""

import re
from typing import NamedTuple


class Row(NamedTuple):
    """Metrics whose whole name matches `pattern`."""

    pattern: str
    meaning: str
    timed: bool = False
    """Whether it depends on the clock or the machine; all others are the same in a run that was stopped and resumed."""


METRICS: tuple[Row, ...] = (
    Row("step", "steps done when the record was written; the rest are means over the steps since the last record"),
    Row("time", "Unix time, seconds", timed=True),
    Row("loss", "what is minimised"),
    Row("loss/.+", "its terms, before their weights (tokenizer); losses of generator and discriminator"),
    Row("cross_entropy/(text|vision)", "nats a predicted token, every one counted once"),
    Row(r"cross_entropy/scale_\d+", "nats a code of this scale, over all pictures; scale 1 is the coarsest"),
    Row(r"accuracy/(text|vision|scale_\d+)", "share of predictions whose likeliest id is the right one"),
    Row("data/.+", "what the batches since the last record hold: shares by task and source (data/mixture)"),
    Row("fill", "share of positions that belong to a document"),
    Row("data/padding_share", "share of positions that are padding, as planned"),
    Row("data/documents_per_row", "documents that share a row"),
    Row("data/cost_imbalance", "FLOPs of the dearest group of a batch's rows over those of the mean group"),
    Row("data/documents/inverted", "share of documents that were text to image and are turned into captioning"),
    Row("data/(documents|tokens)/.+", "share of documents or positions of a task, @source, or entry of the mixture"),
    Row("data/epochs/.+", "how often the run has seen the documents of an entry of the mixture (all: every document)"),
    Row("learning_rate", "of parameters whose rate is not changed by optimizer.rates"),
    Row("bad_steps", "share of steps whose loss or gradient was not finite, or a spike; they changed nothing"),
    Row("spikes", "share of steps whose loss or gradient leapt above the recent ones (config.recovery.spikes)"),
    Row("grad_norm", "L2 norm of the whole gradient, before clipping"),
    Row(
        "grad_norm/layers_[1-4]", "in the last step of the record: of a quarter of the decoder's layers, first to last"
    ),
    Row("grad_norm/.+", "in the last step of the record: of a group of modules (module_groups.py), before clipping"),
    Row("(update|param)_norm(/.+)?", "likewise, of what the step added to the parameters, and of these before it"),
    Row("residual/rms/layers_[1-4]", "RMS of the decoder's residual stream after the layers of a quarter of its depth"),
    Row("residual/outlier/layers_[1-4]", "its largest absolute value there, over this RMS; padding is left out"),
    Row("tokens_per_s", "positions a second, over all devices; checkpoints are not counted", timed=True),
    Row("tokens_per_s_per_device", "the same over the number of devices", timed=True),
    Row("examples_per_s", "rows a second, over all devices", timed=True),
    Row("step_ms", "milliseconds a step, waiting for data included, checkpoints not", timed=True),
    Row("data_wait", "share of that time in which the devices had nothing to do for want of a batch", timed=True),
    Row("data_wait_s", "the same in seconds since the last record", timed=True),
    Row("batches_ready", "batches that lay ready when one was asked for; 0 means that data sets the speed", timed=True),
    Row("mfu", "model FLOPs over peak FLOPs of all devices", timed=True),
    Row("memory/device_gib", "GiB in use on the fullest device of the first process; no CPU says so", timed=True),
    Row("memory/device_peak_gib", "the most that it ever was; the step's own peak is part of it", timed=True),
    Row("memory/host_gib", "GiB of the first process that are in memory (resident set)", timed=True),
    Row("goodput", "share of the run's wall clock so far, restarts included, in which steps were done", timed=True),
)
"""In the order of the documentation; the first row that matches counts."""


def find_row(name: str) -> Row | None:
    """The row of a metric; None for one that a task reports and the table does not know."""
    return next((row for row in METRICS if re.fullmatch(row.pattern, name)), None)


def is_timed(name: str) -> bool:
    """Whether a metric depends on the clock or the machine."""
    row = find_row(name)
    return row is not None and row.timed
