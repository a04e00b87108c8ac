"""What is compiled, and how often: nothing between prompts, and caches that are updated in place."""

import contextlib
import dataclasses
import re

import jax
import numpy as np
import pytest

from nextflow_jax.sampling import phases as phases_module
from nextflow_jax.sampling.engine import Engine
from nextflow_jax.sampling.phases import Draws, Phases
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import Request, caption, edit, text_to_image
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models

SQUARE, WIDE = tiny_models.FAMILY.sizes
COMPILATION = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Counts programs compiled meanwhile, those found in the compile cache on disk included."""
    events = []

    def listen(name, seconds, **_):
        if name == COMPILATION:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_other_prompts_of_the_same_shapes_compile_nothing():
    """Other lengths, seeds, settings and tasks; the first batch reads both kinds of unguided prompts."""
    sampler = Sampler(tiny_models.bundle())
    guided = SamplingSettings(guidance=3.0, temperature=1.0, top_k=0)
    other = SamplingSettings(guidance=(1.5, 2.0), temperature=(0.7, 0.9), top_k=5, top_p=0.9, text_top_k=3)
    pictures = [tiny_models.picture(i, SQUARE) for i in range(4)]

    def batch(text, settings, seed, pictures):
        return [
            text_to_image(text, size=SQUARE, seed=seed, settings=settings),
            edit(pictures[0], "make it blue", size=SQUARE, seed=seed + 1, settings=settings),
            caption(pictures[1], max_text_tokens=6, seed=seed + 2, settings=settings),
        ]

    with compilations() as first:
        sampler.generate(batch("sun", guided, 0, pictures[:2]))
    assert first
    with compilations() as again:
        sampler.generate(batch("the dark moon", other, 7, pictures[2:]))
        tasks = batch("a red sun", guided, 3, pictures[1:])
        sampler.generate([tasks[1], tasks[2], tasks[0]])
        sampler.generate([tasks[0], tasks[1], dataclasses.replace(tasks[0], seed=11)])
    assert not again


@pytest.fixture(scope="module")
def started():
    """Phases with the arguments of a picture that a guided batch is about to draw."""
    bundle = tiny_models.bundle()
    settings = SamplingSettings(guidance=2.0)
    prompts = make_prompts([Request(("sun",), size=WIDE, settings=settings, begin_with_image=True)] * 2, bundle)
    engine = Engine(bundle)
    ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    draws = Draws(jax.random.split(jax.random.key(0), 2), 2 * ones, ones, zeros, ones)
    return engine, engine._read_prompts(prompts), draws, np.ones(2, bool), prompts[0].schedule


def test_the_cache_is_updated_in_place(started):
    """Its memory is the argument's, and no operation makes another cache: not in a scale, not in a layer."""
    engine, rows, draws, active, schedule = started
    phases = Phases(engine._phases._config, engine._phases._sequence)
    drawing = phases._drawing_before(engine._weights, rows, schedule, 2, 2)
    program = phases.draw_scale.lower(engine._weights, rows, drawing, draws, active, schedule=schedule, k=2).compile()
    cache_bytes = rows.cache.keys.nbytes + rows.cache.values.nbytes
    assert program.memory_analysis().alias_size_in_bytes >= cache_bytes
    shape = ",".join(map(str, rows.cache.keys.shape))
    made = set(re.findall(rf"= f32\[{shape}\]\S* ([\w-]+)\(", program.as_text()))
    assert "scatter" in made or "dynamic-update-slice" in made
    assert not made & {"copy", "transpose", "convert", "select", "broadcast", "concatenate"}


def test_a_coarse_scale_reads_less_of_the_cache_than_the_finest(started, monkeypatch):
    engine, rows, draws, active, schedule = started
    monkeypatch.setattr(phases_module, "REACH_STEP", 1)
    phases, reaches = Phases(engine._phases._config, engine._phases._sequence), []
    apply = phases._decoder.apply
    spy = lambda variables, *args, **options: (  # noqa: E731
        reaches.append(args[1].reach.slots) if len(args) > 1 else None,
        apply(variables, *args, **options),
    )[1]
    monkeypatch.setattr(phases._decoder, "apply", spy, raising=False)
    for k in range(3):
        drawing = phases._drawing_before(engine._weights, rows, schedule, k, 2)
        jax.eval_shape(
            lambda *arguments, k=k: phases._draw_scale(*arguments, schedule=schedule, k=k),
            engine._weights,
            rows,
            drawing,
            draws,
            active,
        )
    capacity, counts = rows.cache.capacity, schedule.counts
    assert reaches == [capacity - counts[1] - counts[2], capacity - counts[2], capacity]
