"""Tokenizers that play against a discriminator: resume, eight devices, starts, bundles without a second player."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.bundle import load_bundle
from nextflow_jax.config import preflight, to_config_dict
from nextflow_jax.errors import UserError
from nextflow_jax.export import export_run
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import prepare_experiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.state import init_state
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task, tokenizer
from nextflow_jax.vision.adversarial import AdversarialConfig, without_players
from nextflow_jax.vision.discriminator import DiscriminatorConfig
from nextflow_jax.vision.losses import TokenizerLossConfig
from nextflow_jax.vision.lpips import lpips_shapes
from tests.training import small

LOSS = TokenizerLossConfig(l1=0.5, distillation_cosine=0.0, distillation_l2=0.0)
SMALL = DiscriminatorConfig(width=4, max_width=4, layers=1, groups=2)
PLAYING = AdversarialConfig(weight=0.2, discriminator=SMALL, start_step=2, discriminator_start=1, lecam=0.1)


def experiment(adversarial=PLAYING, mesh=MeshConfig(), **fields):  # noqa: B008  (frozen)
    """One codebook: without the semantic branch the programs compile in half the time."""
    plain = dataclasses.replace(small.tokenizer(""), loss=LOSS, init_from_teacher=False)
    quantizer = dataclasses.replace(plain.model.quantizer, semantic_dim=0)
    plain = dataclasses.replace(plain, model=dataclasses.replace(plain.model, quantizer=quantizer))
    optimizer = dataclasses.replace(small.OPTIMIZER, clip_groups=("^discriminator/",) if adversarial.weight else ())
    fields = {"optimizer": optimizer, **fields}
    return dataclasses.replace(plain, adversarial=adversarial, mesh=mesh, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and last state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("adversarial")
    return folder, small.run(experiment(), folder)


def test_it_resumes_bit_for_bit(finished, tmp_path):
    small.check_resume(experiment(), *finished, tmp_path)
    record = small.logged(tmp_path)[-1]
    assert {"loss/generator", "loss/discriminator", "loss/lecam", "adversarial/accuracy"} <= record.keys()
    state = finished[1]
    assert state.variables["adversarial"]["logits"]["steps"] == 5
    assert "discriminator" in state.ema


def test_nothing_is_said_of_players_that_have_not_started(finished):
    first = small.logged(finished[0])[0]
    assert "loss/generator" not in first and "loss/discriminator" in first


def test_eight_devices_equal_one(finished, tmp_path):
    settings = experiment(mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    state = train(settings, make_task(settings), tmp_path, jax.devices(), io.StringIO())
    params = jax.device_get(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, finished[1].params)
    for ours, theirs in zip(small.logged(tmp_path), small.logged(finished[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_a_bundle_holds_the_tokenizer_alone(finished, tmp_path):
    restored = restore_variables(finished[0])
    assert "discriminator" in restored.params and "adversarial" in restored.variables
    codec = load_bundle(export_run(finished[0], tmp_path / "bundle")).codec
    own = {name: tree for name, tree in restored.params.items() if name != "discriminator"}
    assert jax.tree.structure(codec.variables) == jax.tree.structure(
        {"params": own, "codebook": restored.variables["codebook"]}
    )
    jax.tree.map(np.testing.assert_array_equal, codec.variables["params"], own)


@functools.cache
def start():
    """Fresh variables with a discriminator, and a batch."""
    task = make_task(experiment())
    state = init_state(task, small.layout_of(task), 0)
    return state.params, state.variables, jax.tree.map(jnp.asarray, next(task.batches(0, 0, 1)))


@functools.cache
def gradients(adversarial):
    """(params, variables, step) -> gradients by the tokenizer's parameters, and the metrics."""
    task = make_task(experiment(adversarial))
    batch = start()[2]

    def loss(own, rest, variables, step):
        value, (metrics, _) = task.loss({**rest, **own}, variables, {}, batch, jax.random.key(1), step)
        return value, metrics

    def run(step):
        variables = {"params": start()[0], **start()[1]}
        own = without_players(variables)
        rest = {} if adversarial.weight == 0 else {"discriminator": variables["params"]["discriminator"]}
        state = {name: tree for name, tree in (variables if rest else own).items() if name != "params"}
        return compiled(own["params"], rest, state, jnp.asarray(step))

    compiled = jax.jit(jax.grad(loss, has_aux=True))
    return run


OFF = AdversarialConfig()


def test_before_the_start_gradients_are_those_without_a_discriminator():
    ours, metrics = gradients(PLAYING)(step=1)
    theirs, plain = gradients(OFF)(step=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)
    np.testing.assert_allclose(metrics["loss"][0], plain["loss/total"][0], rtol=1e-6)
    assert metrics["loss/generator"][1] == 0 and metrics["loss/discriminator"][1] == 1


def test_at_the_last_kernel_the_generators_gradient_is_as_long_as_the_pictures():
    """Times its weight; the generator's gradient is what playing adds to the gradient without a discriminator."""
    picture, whole = gradients(OFF)(step=2)[0], gradients(PLAYING)(step=2)
    added = jax.tree.map(lambda a, b: (a - b) / PLAYING.weight, whole[0], picture)
    ours, theirs = (np.linalg.norm(tree["pixel_decoder"]["out"]["kernel"]) for tree in (picture, added))
    ratio = whole[1]["adversarial/adaptive"][0]
    np.testing.assert_allclose(ratio, ours / (theirs / ratio + 1e-4), rtol=1e-3)
    assert (np.abs(added["pixel_encoder"]["stem"]["kernel"]) > 0).any()


def perceptual(vgg, linear):
    """An experiment with LPIPS, on pictures that are large enough for it."""
    family = ScheduleFamily(ladder=(1, 2, 4), stride=4, sizes=((16, 16),))
    return experiment(
        loss=dataclasses.replace(LOSS, lpips=0.5),
        lpips_vgg=vgg,
        lpips_linear=linear,
        model=dataclasses.replace(experiment().model, family=family),
        pictures=dataclasses.replace(small.PICTURES, size=(16, 16)),
    )


def test_lpips_is_a_constant_term_of_the_loss(monkeypatch):
    weights = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), lpips_shapes((2, 2, 2, 2, 2)))
    files = []
    monkeypatch.setattr(tokenizer, "load_lpips", lambda *paths: files.extend(paths) or weights)
    task = make_task(perceptual("vgg.pth", "linear.pth"))
    assert files == ["vgg.pth", "linear.pth"] and task.constants() == {"lpips": weights}
    layout = small.layout_of(task)
    step = make_train_step(task, layout.optimizer, 0)
    _, metrics = jax.eval_shape(step, layout.abstract, task.constants(), task.batch_specs()[0])
    assert {"loss/lpips", "loss/generator"} <= metrics.keys()


def test_the_judges_count_as_work():
    spec = make_task(experiment()).batch_specs()[0]
    with_judge, without = (make_task(experiment(config)) for config in (PLAYING, OFF))
    params = start()[0]
    own = {name: tree for name, tree in params.items() if name != "discriminator"}
    assert with_judge.flops_per_step(params, spec) > without.flops_per_step(own, spec) > 0


def test_missing_weights_are_found_before_anything_else(tmp_path):
    broken = perceptual(str(tmp_path / "vgg.pth"), "linear.pth")
    with pytest.raises(UserError, match="lpips_vgg = .*vgg.pth': no such file.*lpips_linear = 'linear.pth': no such"):
        prepare_experiment(to_config_dict(broken), 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": dataclasses.replace(LOSS, lpips=1.0)}, "config.loss.lpips = 1.0: pictures have sides of 12"),
        ({"loss": dataclasses.replace(LOSS, lpips=1.0)}, "config.lpips_vgg = '': .* needs published weights; give"),
        (
            {"adversarial": dataclasses.replace(PLAYING, discriminator=DiscriminatorConfig())},
            "config.adversarial.weight = 0.2: pictures have sides of 12 pixels, and it needs 24",
        ),
        ({"adversarial": dataclasses.replace(PLAYING, r1=-1.0)}, "config.adversarial.r1 = -1.0"),
        ({"optimizer": small.OPTIMIZER}, r"config.optimizer.clip_groups = \(\): .* use \('\^discriminator/',\)"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        preflight(dataclasses.replace(experiment(), **fields))
