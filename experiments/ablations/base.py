"""What the decoder's ablations start from: the quickstart's decoder, shortened."""

from collections.abc import Collection

import ml_collections

from experiments.ablations.jobs import ROOT
from nextflow_jax.config import load_experiment

QUICKSTART = ROOT / "experiments" / "openmoji" / "quickstart.py"


def quickstart_decoder(name: str, switches: Collection[str]) -> ml_collections.ConfigDict:
    """The quickstart's decoder at 800 steps, evaluated on drawings and captions of training pictures.

    Args:
      name: what the run is called.
      switches: "smoke" makes everything tiny.
    """
    config = load_experiment(f"{QUICKSTART}:{','.join(('decoder', *sorted(switches)))}")
    config.name = f"ablation of {name}"
    if "smoke" not in switches:
        config.train.update(steps=800, log_every=50, checkpoint_every=400)
    config.evaluation.update(edits=0, heldout=0, shown=4, targets=())
    return config


def draw_only(config: ml_collections.ConfigDict, steps: int) -> ml_collections.ConfigDict:
    """The same on text to image alone, in so many steps."""
    config.train.steps = min(config.train.steps, steps)
    config.extraction.tasks = ("text_to_image",)
    config.pipeline.mixture.weights = (("text_to_image", 1.0),)
    return config
