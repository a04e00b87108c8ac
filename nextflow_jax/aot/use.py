"""The programs that use trained models, traced and lowered for a topology: extraction and sampling."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextflow_jax import sharding
from nextflow_jax.aot.programs import PlannedProgram, local_bytes, placed, with_known_sizes
from nextflow_jax.aot.topology import Topology
from nextflow_jax.bundle import is_bundle, read_vision_config
from nextflow_jax.config import load_experiment
from nextflow_jax.errors import UserError
from nextflow_jax.models.cache import make_cache
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.sampling.batches import LEAST_SLOTS, round_up
from nextflow_jax.sampling.phases import Drawing, Draws, Phases
from nextflow_jax.sampling.steps import Rows, ScaleFeatures
from nextflow_jax.sampling.weights import READ_IN_FLOAT32, Weights
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.sequence import image_positions
from nextflow_jax.training.checkpoint import read_meta
from nextflow_jax.training.experiment import DecoderExperiment, TokenizerExperiment, build_experiment
from nextflow_jax.training.flops import traced_flops
from nextflow_jax.training.state import num_parameters
from nextflow_jax.training.tasks.planned import require_sizes
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

PROMPT_POSITIONS = 128
"""Of each prompt, when sampling is compiled."""


def extraction_step(experiment: DecoderExperiment, tokenizer: str, topology: Topology) -> PlannedProgram:
    """A device call of `nextflow_jax.extract` on every host: a chunk of pictures on each of its devices, encoded.

    Args:
      experiment: says how pictures are encoded; those of `pictures.size`.
      tokenizer: as for `tokenizer_config`.
      topology: where.

    Raises:
      UserError: no such tokenizer, or pictures of a size that it does not know.
    """
    config = _of_level(experiment, tokenizer)
    hosts = len({device.process_index for device in topology.devices})
    devices = topology.devices[: len(topology.devices) // hosts]
    mesh = Mesh(devices, ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    size, schedule = experiment.pictures.size, config.family.schedule(experiment.pictures.size)
    images = jnp.zeros((1, *size, 3))
    boxed = jax.eval_shape(lambda key: VisionTokenizer(config).init(key, images, train=False), jax.random.key(0))
    variables = placed(meta.unbox(boxed), everywhere)
    codec = VisionTokenizerCodec(config, variables, chunk=experiment.extraction.batch_size, mesh=mesh)
    correction = experiment.extraction.self_correction
    with sharding.traced_for(devices[0]):
        traced = codec.trace_encode(size, correction if correction.share else None)
        lowered = traced.lower()
    flops = traced_flops(traced.jaxpr)
    pictures = codec.pictures_at_once(size)
    return PlannedProgram(
        name="extract",
        lowered=lowered,
        flops=flops,
        params=num_parameters(variables["params"]),
        tokens=hosts * pictures * schedule.num_tokens,
        model_flops=hosts * sum(flops),
        argument_bytes=local_bytes(variables),
        mesh=dict(mesh.shape),
        copies=hosts,
        settings={"extraction.batch_size": experiment.extraction.batch_size},
        assumed={"pictures": f"of {size[0]}x{size[1]}"},
    )


def sampling_step(experiment: DecoderExperiment, tokenizer: str, topology: Topology) -> PlannedProgram:
    """The largest program of a picture, its last scale, of `evaluation.batch_size` guided requests at once.

    `mesh.tensor` devices share the weights and the cache's heads; all others are copies.

    Args:
      experiment: of the decoder.
      tokenizer: as for `tokenizer_config`.
      topology: where.

    Raises:
      UserError: sizes of the decoder are not known, no such tokenizer, or heads that the devices do not divide.
    """
    experiment = with_known_sizes(experiment)
    require_sizes(experiment)
    tensor = max(1, experiment.mesh.tensor)
    copies = len(topology.devices) // tensor
    if not copies:
        raise UserError(f"config.mesh.tensor = {tensor}: the topology has {len(topology.devices)} devices")
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, tensor=tensor), topology.devices[:tensor])
    rules = sharding.make_rules(experiment.rules)
    config = dataclasses.replace(experiment.model, param_dtype=experiment.model.dtype)
    family = _of_level(experiment, tokenizer).family
    schedule = family.schedule(experiment.pictures.size)
    requests = experiment.evaluation.batch_size
    phases = Phases(config, experiment.pipeline.sequence)
    last = schedule.num_scales - 1
    with sharding.logical_context(mesh, rules):
        arguments = _arguments(experiment, config, schedule, last, requests, mesh, rules)
        traced = phases.draw_scale.trace(*arguments, schedule=schedule, k=last)
        lowered = traced.lower()
    flops = traced_flops(traced.jaxpr)
    size = "x".join(map(str, experiment.pictures.size))
    return PlannedProgram(
        name="sample",
        lowered=lowered,
        flops=flops,
        params=num_parameters(arguments[0].decoder["params"]),
        tokens=copies * requests * schedule.counts[last],
        model_flops=copies * sum(flops),
        argument_bytes=local_bytes(arguments),
        mesh=dict(mesh.shape),
        copies=copies,
        settings={"evaluation.batch_size": requests, "mesh.tensor": tensor},
        assumed={
            "program": f"the last of {schedule.num_scales} scales of a picture of {size}, the decoder's largest",
            "prompts": f"{PROMPT_POSITIONS} positions, guided",
        },
    )


def tokenizer_config(tokenizer: str) -> VisionTokenizerConfig:
    """The architecture of a vision tokenizer: of an experiment (FILE.py[:VARIANT]), a run's folder, or a bundle.

    Raises:
      UserError: none of these, or one of another kind.
    """
    if not tokenizer:
        raise UserError(
            "--tokenizer: extraction and sampling need a vision tokenizer; give its experiment, e.g. "
            "experiments/nextflow/tokenizer.py:decoder, the --workdir of a run, or a bundle"
        )
    path = pathlib.Path(tokenizer)
    if path.is_dir() and is_bundle(path):
        return read_vision_config(path)
    experiment = build_experiment(read_meta(path)["config"] if path.is_dir() else load_experiment(tokenizer))
    if not isinstance(experiment, TokenizerExperiment):
        raise UserError(f"--tokenizer {tokenizer}: kind {experiment.kind!r} has no vision tokenizer; give one that has")
    return experiment.model


def _of_level(experiment: DecoderExperiment, tokenizer: str) -> VisionTokenizerConfig:
    """The tokenizer with the schedules that the experiment extracts with."""
    config = tokenizer_config(tokenizer)
    return dataclasses.replace(config, family=experiment.extraction.family(config.family))


def _arguments(
    experiment: DecoderExperiment,
    config: DecoderConfig,
    schedule: ScaleSchedule,
    k: int,
    requests: int,
    mesh: Mesh,
    rules: sharding.Rules,
) -> tuple[Weights, Rows, Drawing | None, Draws, jax.ShapeDtypeStruct]:
    """What `Phases.draw_scale` takes for scale k, as shapes with shardings."""
    sequence = experiment.pipeline.sequence
    accumulated = sequence.inputs == "accumulated"
    slots = round_up(PROMPT_POSITIONS + image_positions(schedule), LEAST_SLOTS)
    rows, scales = 2 * requests, schedule.num_scales
    features = None
    if accumulated:
        features = ScaleFeatures(jnp.zeros((config.vocabulary.codebook_size, config.code_dim)), None)

    def others() -> tuple[Rows, Drawing | None, Draws, jax.Array, ScaleFeatures | None]:
        last = jnp.zeros((requests, config.width), config.compute_dtype)
        standing = Rows(make_cache(config, rows, slots), jnp.zeros(rows), last)
        drawing = None
        if k:
            grown = jnp.zeros((rows, *schedule.final_grid, config.code_dim)) if accumulated and k > 1 else None
            drawing = Drawing(jnp.zeros((requests, schedule.counts[k - 1]), jnp.int32), grown)
        keys = jax.vmap(jax.random.key)(jnp.zeros(requests, jnp.uint32))
        return standing, drawing, Draws(keys, *[jnp.ones((requests, scales))] * 4), jnp.ones(requests, bool), features

    boxed = jax.eval_shape(
        lambda key: Decoder(config).init(key, DecoderInputs.zeros(1, 1, sequence.taps)), jax.random.key(0)
    )
    weights = jax.tree_util.tree_map_with_path(
        _as_read(config), meta.unbox(boxed), sharding.shardings_of(boxed, mesh, rules)
    )
    by_heads = NamedSharding(mesh, PartitionSpec(None, None, rules["kv_heads"], None, None))
    everywhere = sharding.replicated(mesh)
    *rest, features = jax.tree.map(
        lambda array: placed(array, by_heads if array.ndim == 5 else everywhere), jax.eval_shape(others)
    )
    return Weights(weights, features), *rest


def _as_read(config: DecoderConfig) -> Any:
    """(path, array, placement) -> the array in the dtype that `place_weights` gives it, there."""

    def read(path: tuple[Any, ...], array: jax.ShapeDtypeStruct, placement: NamedSharding) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if path[-1].key in READ_IN_FLOAT32 else array.dtype
        return jax.ShapeDtypeStruct(array.shape, dtype, sharding=placement)

    return read
