"""The models of experiments without any data: their variables traced, for tests and for the golden files.

Run as a program from the repository's root, it writes tests/goldens/shardings.json anew:

    python -m tests.experiments.abstract
"""

import ast
import json
import os
import pathlib
import runpy

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "goldens" / "shardings.json"
KINDS = ("contrastive", "tokenizer", "decoder")


def constant(path, name, default):
    """The literal that an experiment file gives a name of its own, e.g. VARIANTS, without running the file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    return default


ALL_SPECS = [
    f"{path.relative_to(ROOT)}:{variant}"
    for path in sorted((ROOT / "experiments").glob("*/*.py"))
    if "def get_config(" in path.read_text()
    for variant in constant(path, "VARIANTS", KINDS)
]
"""Every experiment, every kind or those of its VARIANTS; programs that measure are none."""

INGEST_SPECS = [spec for spec in ALL_SPECS if spec.startswith("experiments/data/")]
"""Those that train nothing and make a corpus."""

SPECS = [spec for spec in ALL_SPECS if spec not in INGEST_SPECS]


def build(spec):
    """The experiment, with sizes that would come from shards taken from its file's tokenizer experiment."""
    from nextflow_jax.config import load_experiment
    from nextflow_jax.training.experiment import build_experiment

    experiment = build_experiment(load_experiment(str(ROOT / spec)))
    if experiment.kind != "decoder":
        return experiment
    path, _, variant = spec.partition(":")
    made_by = runpy.run_path(str(ROOT / path)).get("TOKENIZERS", {}).get(variant.partition(",")[0])
    tokenizer = build(made_by or spec.replace(":decoder", ":tokenizer")).model
    scales = tokenizer.family.max_scales + int(experiment.pipeline.last_scale_context)
    quantizer = tokenizer.quantizer
    text = experiment.extraction.text.vocab_size
    return experiment.with_sizes(text, quantizer.codes, quantizer.dim, scales, quantizer.semantic_dim)


def abstract_variables(experiment):
    """Boxed variables of the experiment's model, as shapes."""
    import jax
    import jax.numpy as jnp

    from nextflow_jax.models.decoder import Decoder, DecoderInputs
    from nextflow_jax.vision.adversarial import init_players, join_players
    from nextflow_jax.vision.dual_encoder import DualEncoder
    from nextflow_jax.vision.tokenizer import VisionTokenizer

    key = jax.random.key(0)
    if experiment.kind == "decoder":
        inputs = DecoderInputs.zeros(1, 8, experiment.pipeline.sequence.taps)
        return jax.eval_shape(Decoder(experiment.model).init, key, inputs)
    images = jnp.zeros((1, *experiment.pictures.size, 3))
    if experiment.kind == "tokenizer":
        variables = jax.eval_shape(lambda k: VisionTokenizer(experiment.model).init(k, images, train=False), key)
        if experiment.adversarial.weight:
            players = jax.eval_shape(lambda k: init_players(experiment.adversarial, k, images), key)
            variables = join_players(variables, *players)
        return variables
    tokens, lengths = jnp.zeros((1, experiment.model.max_text_tokens), jnp.int32), jnp.ones(1, jnp.int32)
    model = DualEncoder(experiment.model, experiment.text.vocab_size)
    return jax.eval_shape(model.init, key, images, tokens, lengths)


def sharding_rows(experiment):
    """Array name -> shape and partition on 2 data x 2 fsdp x 2 tensor devices; "" -> the table's totals."""
    import jax

    from nextflow_jax import sharding
    from nextflow_jax.sharding_table import sharding_table

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    variables = abstract_variables(experiment)
    placed = sharding.shardings_of(variables, mesh, sharding.make_rules(experiment.rules))
    table = sharding_table(variables, placed).splitlines()
    rows = {}
    for line in table[1:-1]:
        name, shape, _, _, rest = line.split(maxsplit=4)
        rows[name] = f"{shape} {rest.rsplit(maxsplit=1)[0].rstrip()}"
    return rows | {"": table[-1]}


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    tables = {spec: sharding_rows(build(spec)) for spec in SPECS}
    GOLDEN.write_text(json.dumps(tables, indent=1) + "\n")
