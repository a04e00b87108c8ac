"""Adversarial training is stable: the quickstart's tokenizer for 2000 steps, from step 500 on against a discriminator.

What it is to show (issue: "no collapse"): reconstruction and codebook usage go on as without a discriminator, the
discriminator neither wins (accuracy near 1, generator's loss growing) nor gives up (accuracy near 0.5 for good), and
pictures get sharper edges. On the 438 training pictures of OpenMoji at 32 pixels; the discriminator would learn so few
by heart, hence the augmentation.

Variants: tokenizer (a PatchGAN, hinge, LeCAM), `,stylegan` (StyleGAN2's discriminator, non-saturating, R1), `,off`
(the same run without a discriminator, to compare with). Adding `,smoke` makes everything tiny.

Commands, for this file F and each variant V:

    python -m nextflow_jax.train --config experiments/openmoji/quickstart.py:contrastive \\
        --workdir runs/quickstart/contrastive                              # the teacher, unless it is there
    python -m nextflow_jax.train --config F:V --workdir runs/gan/V
    python -m nextflow_jax.evaluate --config F:V --workdir runs/gan/V --out runs/gan/V/evaluation
    python -m nextflow_jax.report runs/gan/* --out runs/gan/report

In metrics.jsonl: loss/l1, loss/l2 and psnr against `,off`; codebook/usage; adversarial/accuracy, logit_real,
logit_fake, adaptive and weight. A pass is: all finite, usage above 0.9 at every record after step 250, PSNR not more
than 1 dB below that of `,off` at the end, accuracy below 0.98 over the last 500 steps.

Cost: 5 min on two CPU cores that other runs shared; 0.12 s a step at the end, when they had ended.

Result: (tokenizer, seed 0, teacher of the quickstart) stable over 2000 steps, no step refused. Of the training pictures
26.80 dB, SSIM 0.905, every one of 1024 codes in use; validation 15.79 dB, 0.540. (The quickstart's tokenizer, 1500
steps without a discriminator: 25.53 dB, 0.878; 15.70 dB, 0.533.) The codes in use a batch stay at 0.55 to 0.57 of the
960 there could be from step 200 on. The discriminator's accuracy rises slowly to 0.94: it wins ground, for the adaptive
weight holds the generator's term at 0.1 x 0.002. `,off` and `,stylegan` were not run for 2000 steps.
"""

import pathlib

import ml_collections

from nextflow_jax.config import load_experiment, read_variant

VARIANTS = ("tokenizer", "tokenizer,stylegan")
"""What the tests build and lay out."""

QUICKSTART = pathlib.Path(__file__).parent.parent / "openmoji" / "quickstart.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: tokenizer, and optionally `,stylegan` or `,off`, and `,smoke`."""
    _, switches = read_variant(variant, ("tokenizer",), ("stylegan", "off", "smoke"))
    config = load_experiment(f"{QUICKSTART}:tokenizer{',smoke' if 'smoke' in switches else ''}")
    config.name = "gan " + ("off" if "off" in switches else "stylegan" if "stylegan" in switches else "patchgan")
    config.train.steps = 2000
    config.loss.update(l1=0.2, l2=1.0)
    if "off" not in switches:
        _play(config)
        (_stylegan if "stylegan" in switches else _patchgan)(config.adversarial)
    if "smoke" in switches:
        config.train.steps = 20
        config.adversarial.update(discriminator_start=4, start_step=8, ramp_steps=4)
        config.adversarial.discriminator.update(width=8, max_width=16)
    return config


def _play(config: ml_collections.ConfigDict) -> None:
    """What does not depend on the discriminator; it is given 100 steps before the tokenizer feels it."""
    config.adversarial.update(weight=0.1, discriminator_start=400, start_step=500, ramp_steps=250, augment=True)
    # The tokenizer's rate of 5e-3 is far too high for a discriminator.
    config.optimizer.update(clip_groups=("^discriminator/",), rates=(("^discriminator/", 0.1),))


def _patchgan(adversarial: ml_collections.ConfigDict) -> None:
    """Patches of 34 pixels at 6 x 6 places: more layers would not fit pictures of 32 pixels."""
    adversarial.discriminator.update(kind="patchgan", width=32, layers=2)
    adversarial.update(loss="hinge", lecam=0.01)


def _stylegan(adversarial: ml_collections.ConfigDict) -> None:
    """From 32 x 32 to 4 x 4 cells."""
    adversarial.discriminator.update(kind="stylegan", width=16, max_width=64, layers=3)
    adversarial.update(loss="non_saturating", r1=1.0, r1_interval=16)
