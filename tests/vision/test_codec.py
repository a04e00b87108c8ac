import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.scales import level_family
from nextflow_jax.vision import codec as codec_module
from nextflow_jax.vision import residual, tiled
from nextflow_jax.vision.codec import VisionTokenizerCodec, fingerprint, images_to_float, images_to_uint8
from nextflow_jax.vision.quantizer import SelfCorrection
from nextflow_jax.vision.tokenizer import VisionTokenizer

CORRECTION = SelfCorrection(share=0.6, top_k=5)


@pytest.fixture(scope="module")
def codec(config, variables):
    return VisionTokenizerCodec(config, variables, chunk=4)


def pictures(count, width=16):
    return np.random.default_rng(0).integers(0, 256, (count, 16, width, 3), dtype=np.uint8)


def test_bytes_survive_the_way_to_floats_and_back():
    values = np.arange(256, dtype=np.uint8)
    assert float(images_to_float(values).min()) == -1.0
    assert float(images_to_float(values).max()) == 1.0
    np.testing.assert_array_equal(images_to_uint8(images_to_float(values)), values)
    np.testing.assert_array_equal(images_to_uint8(np.array([-7.0, 7.0], np.float32)), [0, 255])


def test_codes_and_pixels_do_not_depend_on_the_batch(codec):
    images = pictures(6)
    codes, targets = codec.encode(images)
    np.testing.assert_array_equal(codes, targets)
    assert codes.dtype == np.int32
    assert codes.shape == (6, 21)
    decoded = codec.decode(codes, (16, 16))
    assert decoded.dtype == np.uint8
    assert decoded.shape == images.shape
    for row in (0, 5):
        np.testing.assert_array_equal(codec.encode(images[row : row + 1])[0][0], codes[row])
        np.testing.assert_array_equal(codec.decode(codes[row : row + 1], (16, 16))[0], decoded[row])


def test_partial_pictures_end_in_the_whole_one(codec):
    codes, _ = codec.encode(pictures(3, width=24))
    partial = codec.decode_partial(codes, (16, 24))
    assert len(partial) == codec.family.schedule((16, 24)).num_scales
    np.testing.assert_array_equal(partial[-1], codec.decode(codes, (16, 24)))
    changed = codes.copy()
    changed[:, 1:] = (changed[:, 1:] + 1) % len(codec.codebook)
    np.testing.assert_array_equal(codec.decode_partial(changed, (16, 24))[0], partial[0])


@pytest.mark.parametrize(("size", "length"), [((16, 16), 3), ((16, 24), 2)])
def test_large_pictures_come_fewer_at_a_time(config, variables, codec, monkeypatch, size, length):
    bounded = VisionTokenizerCodec(config, variables, chunk=4, chunk_pixels=3 * 16 * 16)
    seen, paint = [], bounded._paint
    monkeypatch.setattr(
        bounded, "_paint", lambda *args, **kwargs: seen.append(args[1].shape[0]) or paint(*args, **kwargs)
    )
    codes = codec.encode(pictures(5, width=size[1]))[0]
    np.testing.assert_array_equal(bounded.encode(pictures(5, width=size[1]))[0], codes)
    np.testing.assert_array_equal(bounded.decode(codes, size), codec.decode(codes, size))
    assert seen == [length] * -(-5 // length)


def test_a_picture_beyond_every_bound_is_decoded_alone_and_in_strips(config, variables, codec, monkeypatch):
    strips = VisionTokenizerCodec(config, variables, chunk_pixels=100, whole_pixels=16 * 16, strip_rows=4)
    calls = []
    monkeypatch.setattr(
        codec_module, "tiled_decode", lambda *args: calls.append(args[3].shape[0]) or tiled.tiled_decode(*args)
    )
    for width, tiled_calls in ((16, []), (24, [1])):
        codes, _ = codec.encode(pictures(2, width=width))
        expected, found = (each.decode_partial(codes, (16, width)) for each in (codec, strips))
        assert len(expected) == len(found)
        np.testing.assert_allclose(np.int32(found), np.int32(expected), atol=1)
        np.testing.assert_array_equal(strips.decode(codes, (16, width)), found[-1])
        assert calls == tiled_calls


def test_self_correction_follows_the_pictures_own_key(codec):
    images, keys = pictures(6), jax.random.split(jax.random.key(0), 6)
    inputs, targets = codec.encode(images, keys, CORRECTION)
    assert 0 < np.mean(inputs != targets) < 0.6
    again, _ = codec.encode(images[4:], keys[4:], CORRECTION)
    np.testing.assert_array_equal(again, inputs[4:])
    from_one_key, _ = codec.encode(images, jax.random.key(1), CORRECTION)
    assert np.any(from_one_key != inputs)
    np.testing.assert_array_equal(codec.encode(images, jax.random.key(1), CORRECTION)[0], from_one_key)


def test_accumulated_inputs_are_the_maps_of_partial_decoding(codec, config, variables):
    schedule = config.family.schedule((16, 24))
    codes, _ = codec.encode(pictures(1, width=24))
    maps = residual.accumulate(schedule, codec.codebook[codes[0]], codec.refinement)
    features = codec.accumulate(schedule, codes[0])
    assert [len(cells) for cells in features] == [*schedule.counts[1:], schedule.counts[-1]]
    np.testing.assert_allclose(features[-1].reshape(maps[-1].shape), maps[-1])
    np.testing.assert_allclose(features[0][0], maps[0][: 4 // 2, : 6 // 3].mean(axis=(0, 1)), atol=1e-6)


@pytest.fixture(scope="module")
def level_codec(config, random_variables):
    """The tiny tokenizer for the 41 sizes of the 256 level: patches of 16 x 16, no refinement."""
    wide = dataclasses.replace(
        config,
        family=level_family(256),
        vit=dataclasses.replace(config.vit, patch=16),
        pixel=dataclasses.replace(config.pixel, stem=16, multipliers=(1,)),
        quantizer=dataclasses.replace(config.quantizer, refiners=0),
    )
    variables = random_variables(VisionTokenizer(wide), jnp.zeros((1, 128, 512, 3)), train=False)
    return VisionTokenizerCodec(wide, variables, chunk=1)


@pytest.mark.parametrize("size", [(128, 512), (272, 240)], ids=str)
def test_pictures_of_any_ratio_go_through_codes_and_back(level_codec, size):
    """The device's codes, accumulated by NumPy, decode to the picture that the device makes of them."""
    schedule = level_codec.family.schedule(size)
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    codes, _ = level_codec.encode(images)
    assert codes.shape == (1, schedule.num_tokens) and len(np.unique(codes)) > 5
    last = level_codec.accumulate(schedule, codes[0])[-1].reshape(1, *schedule.final_grid, -1)
    decoded = level_codec.decode(codes, size)
    assert decoded.shape == images.shape
    tokenizer = VisionTokenizer(level_codec.config)
    expected = jax.jit(lambda x: tokenizer.apply(level_codec.variables, x, method="decode_features"))(last)
    assert np.abs(np.asarray(images_to_uint8(expected), int) - decoded).max() <= 1


def test_the_fingerprint_names_content_and_configuration(config, variables):
    name = fingerprint(variables, config)
    assert name == fingerprint(jax.tree.map(np.asarray, variables), config)
    embedding = variables["codebook"]["quantizer"]["embedding"]
    quantizer = {**variables["codebook"]["quantizer"], "embedding": embedding.at[0, 0].add(1e-3)}
    changed = {**variables, "codebook": {"quantizer": quantizer}}
    other = dataclasses.replace(config, decode_from="both")
    assert len({name, fingerprint(changed, config), fingerprint(variables, other)}) == 3


def test_unusable_input_is_refused_in_one_line(codec):
    with pytest.raises(UserError, match="picture size 8x8 is not supported"):
        codec.encode(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"codes \(1, 20\): a picture of 16x16 has 21 codes"):
        codec.decode(np.zeros((1, 20), np.int32), (16, 16))
    with pytest.raises(UserError, match=r"codes range over 0 ... 32: the codebook has codes 0 ... 31"):
        codec.decode(np.full((1, 21), 32, np.int32) * (np.arange(21, dtype=np.int32) > 0), (16, 16))


def test_pictures_that_are_not_waited_for_are_the_same(codec):
    codes, _ = codec.encode(pictures(6, width=24))
    rows, on_device = [5, 0, 2, 3, 1], jnp.asarray(codes)
    whole = codec.dispatch(on_device, rows, (16, 24)).stages()
    assert len(whole) == 1 and np.array_equal(whole[0], codec.decode(codes[rows], (16, 24)))
    stages = codec.dispatch(on_device, rows, (16, 24), every_scale=True).stages()
    expected = codec.decode_partial(codes[rows], (16, 24))
    assert len(stages) == len(expected) and all(map(np.array_equal, stages, expected))
    schedule = codec.family.schedule((16, 24))
    for scales in range(1, schedule.num_scales + 1):
        known = np.where(np.arange(schedule.num_tokens) < sum(schedule.counts[:scales]), codes, 0)
        [unfinished] = codec.dispatch_unfinished(jnp.asarray(known), rows, (16, 24), scales).stages()
        np.testing.assert_array_equal(unfinished, expected[scales - 1])
