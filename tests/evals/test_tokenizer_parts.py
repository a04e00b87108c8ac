import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from nextflow_jax.data.pictures import BrokenPicture, PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.evals import reconstruction
from nextflow_jax.evals.code_use import CodeUse
from nextflow_jax.evals.config import TokenizerEvaluationConfig
from nextflow_jax.evals.frechet import GaussianStatistics, frechet_distance
from nextflow_jax.evals.judges import Judges
from nextflow_jax.evals.tokenizer_parts import TokenizerSubject, measure_split, metric_name, nearest_sizes, shrink
from nextflow_jax.vision.codec import VisionTokenizerCodec
from tests import tiny_models

SIZES = ((12, 12), (8, 16))
NATIVE = [(12, 12), (30, 60), (10, 11), (8, 16), (100, 300)]
CONFIG = TokenizerEvaluationConfig(batch_size=2, shown=3)


def picture_set(broken=()):
    """Five training pictures, two nearly square and three wide, and a square one for validation."""
    infos = [
        PictureInfo(
            f"p{i}", "validation" if i == 5 else "train", {"en": f"picture {i}"}, "", "", f"p{i}", "", {}, str(i)
        )
        for i in range(6)
    ]

    def read(position, size):
        if position in broken:
            raise BrokenPicture(f"picture {position} is broken")
        return np.random.default_rng(position).integers(0, 256, (*size, 3), dtype=np.uint8)

    native = [*NATIVE, (12, 12)]
    return PictureSet(PicturesConfig(size=(12, 12)), infos, lambda p: read(p, (12, 12)), {}, native, read)


@pytest.fixture(scope="module")
def codec():
    tiny = tiny_models.bundle().codec
    return VisionTokenizerCodec(tiny.config, tiny.variables, chunk=2)


def mean_colours(images):
    return images.astype(np.float32).mean(axis=(1, 2))


def distances(a, b):
    return np.abs(a.astype(np.float32) - b).mean(axis=(1, 2, 3))


def measure(codec, split="train", config=CONFIG, broken=(), judges=None):
    judges = judges or Judges(distances, mean_colours)
    return measure_split(TokenizerSubject(codec, picture_set(broken), SIZES, judges, config), split)


def test_figures_are_those_of_all_pictures_measured_at_once(codec):
    outcome, pictures = measure(codec), picture_set()
    groups = {(12, 12): ["p0", "p2"], (8, 16): ["p1", "p3", "p4"]}
    values, features, use = {"psnr": [], "ssim": [], "lpips": []}, ([], []), CodeUse(24)
    for size, keys in groups.items():
        originals = pictures.images(keys, size)
        codes = codec.encode(originals)[1]
        copies = codec.decode(codes, size)
        use.add(codes, codec.family.schedule(size))
        values["psnr"] += [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(originals, copies)]
        values["ssim"] += reconstruction.ssim(originals, copies).tolist()
        values["lpips"] += distances(originals, copies).tolist()
        for kept, images in zip(features, (originals, copies)):
            kept.append(mean_colours(images))
    for name, expected in values.items():
        assert outcome.metrics[f"{name}_train"] == pytest.approx(np.mean(expected))
        assert outcome.details["sizes"]["8x16"][f"{name}_train"] == pytest.approx(np.mean(expected[2:]))
    both = [GaussianStatistics.of(np.concatenate(parts)) for parts in features]
    assert outcome.metrics["rfid_train"] == pytest.approx(frechet_distance(*both))
    assert outcome.metrics["codebook_usage"] == use.usage and outcome.metrics["perplexity"] == use.perplexity
    assert outcome.details["scales"]["train"] == use.scales()
    assert outcome.metrics["count_train"] == 5 and "broken_train" not in outcome.metrics


def test_kept_pictures_come_with_their_error_and_every_scale(codec):
    outcome = measure(codec)
    assert {record["size"] for record in outcome.records} == {"12x12", "8x16"} and len(outcome.records) == 3
    for record in outcome.records:
        row, size = record["row"], record["size"]
        original, copy, error, stages = (
            outcome.arrays[f"{what}_{size}"][row] for what in ("original", "copy", "error", "stages")
        )
        assert np.array_equal(stages[-1], copy) and len(stages) == 3
        assert np.array_equal(error, np.minimum(4 * np.abs(original.astype(int) - copy), 255))
        assert record["psnr"] == pytest.approx(peak_signal_noise_ratio(original, copy, data_range=255))


def test_broken_pictures_are_left_out_and_counted(codec):
    whole, outcome = measure(codec), measure(codec, broken=(1, 4))
    assert outcome.metrics["broken_train"] == 2 and outcome.metrics["count_train"] == 3
    assert outcome.details["sizes"]["12x12"] == whole.details["sizes"]["12x12"]
    assert {record["key"] for record in outcome.records} <= {"p0", "p2", "p3"}


def test_a_single_picture_has_no_rfid_and_judges_that_are_absent_no_figures(codec):
    outcome = measure(codec, "validation")
    assert np.isnan(outcome.metrics["rfid_val"]) and outcome.details["sizes"]["12x12"]["rfid_val"] is None
    assert np.isfinite(outcome.metrics["codebook_usage_val"])
    plain = measure(codec, "validation", judges=Judges(left_out={"rfid": "why"}))
    assert not plain.metrics.keys() & {"rfid_val", "lpips_val"} and plain.details["left_out"] == {"rfid": "why"}


def test_a_limit_draws_the_same_pictures_every_time(codec):
    config = TokenizerEvaluationConfig(batch_size=2, shown=9, pictures=3)
    keys = [record["key"] for record in measure(codec, config=config).records]
    assert len(keys) == 3 and keys == [record["key"] for record in measure(codec, config=config).records]


def test_a_picture_is_measured_at_its_nearest_ratio_at_every_resolution():
    sizes = ((64, 64), (128, 128), (32, 128), (64, 256), (128, 64))
    assert nearest_sizes((500, 480), sizes) == [(64, 64), (128, 128)]
    assert nearest_sizes((100, 380), sizes) == [(32, 128), (64, 256)]
    assert nearest_sizes((300, 100), sizes) == [(128, 64)]


def test_large_pictures_are_averaged_for_the_page():
    image = np.zeros((600, 300, 3), np.uint8)
    image[::2] = 200
    small = shrink(image, 300)
    assert small.shape == (300, 150, 3) and np.all(small == 100)
    assert shrink(image, 600) is image


def test_only_the_training_codebook_figures_go_without_a_suffix():
    names = [
        metric_name(*pair) for pair in (("psnr", "validation"), ("perplexity", "train"), ("perplexity", "heldout"))
    ]
    assert names == ["psnr_val", "perplexity", "perplexity_heldout"]
