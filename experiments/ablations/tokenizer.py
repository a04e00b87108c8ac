"""What the tokenizer's parts are worth, at toy size: codebooks, dropped scales, stages, on drawings and photographs.

Questions, and the variants that answer them (every other setting is that of `dual`):

    dual or single codebook, same pixel branch, codes and steps       dual, single
    scales dropped in training: none, 10%, 50%                        drop0, dual, drop50
    stages (a) and (b) or both at once, same steps in all             staged (starts from staged_pixel), dual

on `openmoji` (the default; validation: whole families never trained on) or `photographs` (validation: three photographs
never trained on), both at 64 pixels; `teacher` trains the dual encoder of a data set, which all but single use.

Command (all runs, three seeds, both data sets, then one table; a run that is finished is not repeated):

    python -m experiments.ablations.run --out runs/ablations --seeds 0 1 2

By hand, for this file F and a folder R of your choice:

    python -m nextflow_jax.train --config F:teacher,photographs --workdir R/teacher
    python -m nextflow_jax.train --config F:dual,photographs --workdir R/dual --config.teacher=R/teacher --config.seed=1
    python -m nextflow_jax.evaluate --config F:dual,photographs --workdir R/dual --out R/dual

Cost: 80 to 350 s a run on one CPU core, beside other runs; single about half of dual at rest.

Result: (the command above; three seeds for dual and single, seed 0 for the others: `--variants drop0 drop50 staged
--seeds 0 --tokenizers-only`; dB of PSNR, all with every one of the 512 codes in use)

    pictures      variant   PSNR validation   SSIM   PSNR train
    openmoji      dual      16.74 +- 0.07     0.59   16.85 +- 0.09
    openmoji      single    17.01 +- 0.05     0.60   17.09 +- 0.08
    openmoji      drop0     17.22             0.63   17.67
    openmoji      drop50    15.64             0.52   15.64
    openmoji      staged    16.76             0.59   16.85
    photographs   dual      23.62 +- 0.79     0.61   23.99 +- 0.09
    photographs   single    24.47 +- 0.39     0.63   24.39 +- 0.03
    photographs   drop0     23.38             0.59   24.23
    photographs   drop50    22.01             0.58   23.24
    photographs   staged    23.75             0.61   23.87

The single codebook rebuilds better, by 0.3 and 0.9 dB (0.5 in the paper at 256 pixels). Dropping scales costs
reconstruction at this length, 10% a little and 50% one to two dB; that it helps, as the paper says of long runs, does
not show here. Stages and everything at once are within the spread of seeds on both.
"""

import pathlib

import ml_collections

from nextflow_jax.config import load_experiment, read_variant

VARIANTS = ("teacher", "dual", "single", "staged", "dual,photographs")
"""What the tests build and lay out; the others have the same arrays."""

SWITCHES = ("openmoji", "photographs", "smoke")

STAGES_FILE = pathlib.Path(__file__).parents[1] / "nextflow" / "tokenizer.py"
"""The small form of the recipe's stages, which the variants start from."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: a key of STAGES (dual by default); optionally a data set, and `,smoke`."""
    name, switches = read_variant(variant, list(STAGES), SWITCHES)
    stage, change = STAGES[name]
    config = load_experiment(f"{STAGES_FILE}:{','.join((stage, 'small', *sorted(switches)))}")
    change(config)
    data = "photographs" if "photographs" in switches else "openmoji"
    config.name = f"tokenizer ablation {name}, {data}"
    return config


def _as_it_is(config: ml_collections.ConfigDict) -> None:
    pass


def _from_scratch(config: ml_collections.ConfigDict) -> None:
    """The joint stage without a stage before it, and with the steps of both; the teacher's tower stays its start."""
    config.train.steps *= 2
    config.init_from.update(workdir="", fresh=(), pixel_half=())


def _drop(share: float):
    def change(config: ml_collections.ConfigDict) -> None:
        _from_scratch(config)
        config.model.quantizer.scale_drop = share

    return change


STAGES = {
    "teacher": ("teacher", _as_it_is),
    "single": ("vqgan", _as_it_is),
    "drop0": ("joint", _drop(0.0)),
    "drop50": ("joint", _drop(0.5)),
    "staged_pixel": ("pixel", _as_it_is),
    "staged": ("joint", _as_it_is),
    "dual": ("joint", _from_scratch),
}
"""Variant -> the stage of STAGES_FILE that it starts from, and what it changes."""
