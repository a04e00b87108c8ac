"""The tokenizer on pictures of several ratios: shapes of all buckets, resume across them, hosts that agree."""

import dataclasses

import numpy as np
import pytest

from nextflow_jax.data import pictures
from nextflow_jax.data.buckets import nearest_size
from nextflow_jax.data.pictures import BrokenPicture, PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.scales import ScheduleFamily, level_family
from nextflow_jax.training.tasks import make_task
from nextflow_jax.vision.losses import TokenizerLossConfig
from tests import tiny_models
from tests.training import small

FAMILY = ScheduleFamily(ladder=(1, 2, 3), stride=4, sizes=((12, 12), (8, 16), (16, 8)))
NO_TEACHER = TokenizerLossConfig(distillation_cosine=0.0, distillation_l2=0.0)


def drawn_shape(family):
    """Opens as many random pictures as the family has sizes, twice over, each of one of its ratios; one is broken."""

    def open_ratios(config):
        sizes = [(2 * height + 1, 2 * width + 1) for height, width in family.sizes] * 2
        infos = [PictureInfo(f"p{i}", "train", {"en": "x"}, "", "", "", "", {}, str(i)) for i in range(len(sizes))]

        def read(position, size):
            if position == 1:
                raise BrokenPicture("p1 is broken")
            return np.random.default_rng(position).integers(0, 255, (*size, 3), np.uint8)

        return PictureSet(config, infos, lambda position: read(position, config.size), {}, sizes, read)

    return open_ratios


def experiment_of(family, **train):
    base = small.tokenizer("")
    # A single codebook: half the compilation.
    quantizer = dataclasses.replace(base.model.quantizer, semantic_dim=0)
    return dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, **train),
        pictures=PicturesConfig(name="ratios", size=family.sizes[0]),
        model=dataclasses.replace(
            base.model,
            family=family,
            vit=dataclasses.replace(small.VIT, patch=family.stride),
            quantizer=quantizer,
        ),
        loss=NO_TEACHER,
        init_from_teacher=False,
        buckets=True,
    )


@pytest.fixture(autouse=True)
def ratios(monkeypatch):
    monkeypatch.setitem(pictures.SOURCES, "ratios", drawn_shape(FAMILY))


def first_batches(task, count, part=0, num_parts=1, start=0):
    return [batch["images"] for _, batch in zip(range(count), task.batches(start, part, num_parts))]


def test_a_run_over_three_buckets_learns_and_resumes_bit_for_bit(tmp_path):
    experiment = experiment_of(FAMILY, steps=8)
    shapes = [images.shape for images in first_batches(make_task(experiment), 8)]
    # The run stops at the third batch or soon after.
    assert len(set(shapes)) == 3 and len(set(shapes[:3])) > 1 and len(set(shapes[4:])) > 1
    folder, again = tmp_path / "whole", tmp_path / "again"
    folder.mkdir(), again.mkdir()
    small.check_resume(experiment, folder, small.run(experiment, folder), again)


def test_hosts_draw_the_same_bucket_and_the_rows_of_one_batch():
    whole = first_batches(make_task(experiment_of(FAMILY)), 7, start=4)
    parts = [first_batches(make_task(experiment_of(FAMILY)), 7, part, 2, start=4) for part in range(2)]
    for batch, left, right in zip(whole, *parts):
        np.testing.assert_array_equal(batch, np.concatenate([left, right]))


def test_a_broken_picture_gives_way_to_the_next():
    task = make_task(experiment_of(FAMILY))
    wanted = np.random.default_rng(2).integers(0, 255, (8, 16, 3), np.uint8)
    wide = next(images for images in first_batches(task, 12) if images.shape[1:3] == (8, 16))
    assert any((image == wanted).all() for image in wide)


def test_all_41_ratios_of_the_256_level(monkeypatch):
    family = level_family(256)
    monkeypatch.setitem(pictures.SOURCES, "ratios", drawn_shape(family))
    base = experiment_of(family, batch_size=2)
    pixel = dataclasses.replace(tiny_models.TOKENIZER_CONFIG.pixel, stem=16)
    task = make_task(dataclasses.replace(base, model=dataclasses.replace(base.model, pixel=pixel)))
    specs = task.batch_specs()
    assert {spec["images"].shape[1:3] for spec in specs} == set(family.sizes) and len(specs) == 41
    assert all(700 < task.tokens_per_step(spec) / 2 < 1000 for spec in specs)
    batches = first_batches(task, 82)
    assert {images.shape for images in batches} == {spec["images"].shape for spec in specs}
    assert all(images.dtype == np.uint8 for images in batches)
    assert all(nearest_size((2 * h + 1, 2 * w + 1), family.sizes) == (h, w) for h, w in family.sizes)


def test_flops_are_those_of_the_bucket():
    task = make_task(experiment_of(FAMILY))
    params = small.layout_of(task).abstract.params
    square, wide = (task.flops_per_step(params, spec) for spec in task.batch_specs()[:2])
    assert 0.7 < wide / square < 1
