"""The stages of the published decoder: Table 2's figures, and the whole chain trained tiny, stage after stage."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax import extract
from nextflow_jax.bundle import save_bundle
from nextflow_jax.config import load_experiment
from nextflow_jax.data.shards import open_shards
from nextflow_jax.sequence import image_positions
from nextflow_jax.training.checkpoint import read_meta, restore_variables
from nextflow_jax.training.experiment import build_experiment, prepare_experiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.optimizer import make_optimizer
from nextflow_jax.training.tasks import make_task
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer
from tests import tiny_models
from tests.experiments.abstract import ROOT, abstract_variables

FILE = str(ROOT / "experiments" / "nextflow" / "decoder.py")
TOKENIZER = str(ROOT / "experiments" / "nextflow" / "tokenizer.py")
STAGES = ("align_256", "pretrain_256", "pretrain_512", "pretrain_1024", "continue_1024", "sft_1024")

TABLE_2 = {
    "pretrain_256": (3.4e12, 1e-4, 0.0, {"text": 662, "text_to_image": 1891, "image_to_text": 520}),
    "pretrain_512": (1.8e12, 1e-4, 0.9, {"text": 700, "text_to_image": 345, "edit": 20}),
    "pretrain_1024": (0.2e12, 1e-4, 0.9, {"text": 47, "text_to_image": 10, "edit": 2}),
    "continue_1024": (0.2e12, 5e-5, 0.9, {}),
    "sft_1024": (0.02e12, 1e-5, 0.9, {}),
}
INTERLEAVED = {"pretrain_256": 147, "pretrain_512": 5, "pretrain_1024": 0.5}


def published(stage):
    return build_experiment(load_experiment(f"{FILE}:{stage}"))


@pytest.mark.parametrize("stage", TABLE_2)
def test_stages_are_those_of_table_2(stage):
    experiment = published(stage)
    tokens, learning_rate, alpha, documents = TABLE_2[stage]
    per_step = experiment.train.batch_size * experiment.pipeline.row_length
    assert experiment.train.steps * per_step == pytest.approx(tokens, rel=1e-3)
    assert experiment.optimizer.learning_rate == learning_rate and not experiment.optimizer.freeze
    assert experiment.pipeline.sequence.scale_reweight == alpha
    assert experiment.pipeline.response_only == (stage == "sft_1024")
    assert experiment.extraction.self_correction.share == 0.6 and experiment.extraction.samples_share == 1.0
    weights = dict(experiment.pipeline.mixture.weights)
    if documents:
        assert weights.pop("interleaved") + weights.pop("frames") == INTERLEAVED[stage]
        assert weights == documents
    assert experiment.init_from.workdir == f"runs/nextflow/{STAGES[STAGES.index(stage) - 1]}"


def test_alignment_trains_the_new_parts_of_the_published_tower():
    experiment = published("align_256")
    assert experiment.init_from.weights and not experiment.init_from.workdir
    vocabulary = experiment.model.vocabulary
    assert (vocabulary.text_size, vocabulary.used) == (152_064, 152_064 + 5 + 16_384)
    assert vocabulary.size % 128 == 0 and vocabulary.size - vocabulary.used < 128
    assert experiment.optimizer.train_rows == (("^head/kernel$", 1, 152_064, vocabulary.used),)
    assert dict(experiment.pipeline.mixture.weights) == {"text_to_image": 5.0, "image_to_text": 5.0}
    params = meta.unbox(abstract_variables(experiment))["params"]
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, params)
    trained = jax.tree.leaves(optimizer.split(params)[0])
    assert sorted(leaf.size for leaf in trained) == [3584, 40 * 3584, 3584 * vocabulary.size]


@pytest.mark.parametrize("switch", ["", ",toy"])
def test_rows_hold_a_document_with_as_many_pictures_as_it_may_have(switch):
    """With room for words; arrays have the same shapes in all stages."""
    experiments = [published(stage + switch) for stage in STAGES]
    assert len({experiment.model for experiment in experiments}) == 1
    tokenizer = build_experiment(load_experiment(f"{TOKENIZER}:decoder{switch and ',small'}"))
    for experiment in experiments:
        extraction = experiment.extraction
        family = extraction.family(tokenizer.model.family)
        longest = max(image_positions(schedule) for schedule in family.schedules().values())
        words = 40 if switch else 1000
        assert extraction.max_images * longest + words <= experiment.pipeline.row_length
        assert experiment.model.max_scales > family.max_scales
        assert experiment.pictures.size in family.sizes


def test_the_whole_chain_trains_from_checkpoint_to_checkpoint(tmp_path):
    """Two steps a stage at growing resolutions, with a vision tokenizer that knows only the finest."""
    save_bundle(tmp_path / "tokenizer", vision_tokenizer=random_codec(), origin={})
    text = []
    for level in (256, 512, 1024):
        shards = tmp_path / f"shards_{level}"
        arguments = ["--config", f"{FILE}:pretrain_{level},smoke", "--tokenizer", str(tmp_path / "tokenizer")]
        extract.main([*arguments, "--out", str(shards), *text])
        text = [f"--config.extraction.text.path={tmp_path / 'shards_256' / 'tokenizer'}"]
    grids = [open_shards(tmp_path / f"shards_{level}").manifest.schedule_family for level in (256, 512, 1024)]
    assert [family.schedule(family.sizes[0]).final_grid for family in grids] == [(4, 4), (6, 6), (8, 8)]
    params, before = {}, ""
    for stage in STAGES:
        params[stage] = train_two_steps(tmp_path, stage, before)
        if before:
            origin = read_meta(tmp_path / stage)["fingerprints"]["init_from"]
            assert f"'nextflow decoder {before}, toy', step 2" in origin
        before = stage
    moved = differing(params["align_256"], params["pretrain_256"])
    assert {"layers/mlp/up/kernel", "embedding/tokens", "embedding/connector/out/kernel", "head/kernel"} <= moved


def train_two_steps(folder, stage, before):
    """Trains a stage from the checkpoint of the one before; returns its parameters."""
    overrides = ["train.steps=2", "train.log_every=1", "optimizer.warmup_steps=1", "train.tensorboard=False"]
    overrides.append(f"pipeline.shards={folder}/shards_{stage.rpartition('_')[2]}")
    overrides += [f"init_from.workdir={folder / before}"] if before else []
    experiment = prepare_experiment(load_experiment(f"{FILE}:{stage},smoke", overrides), num_devices=1)
    train(experiment, make_task(experiment), folder / stage, jax.devices()[:1], io.StringIO())
    assert all(np.isfinite(record["loss"]) for record in read_metrics(folder / stage))
    return restore_variables(folder / stage).params


def random_codec():
    """What variant "vqgan" of the tiny vision tokenizer trains, with random weights."""
    experiment = build_experiment(load_experiment(f"{TOKENIZER}:vqgan,smoke"))
    tokenizer, images = VisionTokenizer(experiment.model), jnp.zeros((1, *experiment.pictures.size, 3))
    variables = tiny_models.random_variables(lambda: tokenizer.init(jax.random.key(0), images, train=False), 0.2)
    return VisionTokenizerCodec(experiment.model, variables, chunk=4)


def differing(ours, theirs):
    """Names of arrays that are not equal."""
    flat = [{jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in
             jax.tree_util.tree_leaves_with_path(tree)} for tree in (ours, theirs)]  # fmt: skip
    assert flat[0].keys() == flat[1].keys()
    return {name for name in flat[0] if not np.array_equal(flat[0][name], flat[1][name])}


COMPILED = sorted((ROOT / "experiments" / "nextflow" / "compiled").glob("*.json"))


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_the_compiled_steps_fit_and_gather_no_head_in_a_loop(file):
    """What nextflow_jax.compile said of the published size; the folder's README explains the figures."""
    result = json.loads(file.read_text())
    assert result["fits"]
    assert result["hbm"]["headroom"] >= 0.1 * result["hbm"]["limit"]
    assert not any("all-to-all" in kind for kind in result["collectives"])
    stage = file.stem.rpartition("_v")[0]
    model = build_experiment(load_experiment(f"{FILE}:{stage}")).model
    head = 2 * model.width * model.vocabulary.size
    of_loops = [one for one in result["largest_collectives"] if one["loops"]]
    assert of_loops
    assert max(one["bytes_each"] for one in of_loops) < head / 4


def test_there_is_a_compiled_step_for_every_pod_that_is_promised():
    assert len(COMPILED) == 6
