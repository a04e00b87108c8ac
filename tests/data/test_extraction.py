"""Extraction with a tiny random tokenizer on random pictures."""

import dataclasses
import shutil

import numpy as np
import pytest

from nextflow_jax.bundle import load_bundle
from nextflow_jax.config import preflight
from nextflow_jax.data import extraction, picture_codes
from nextflow_jax.data.documents import Document, Image, Text
from nextflow_jax.data.extraction import ExtractionConfig, extract
from nextflow_jax.data.extraction_pictures import PictureSetSource
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.data.records import EncodedImage, EncodedText
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.vision.quantizer import SelfCorrection
from tests import tiny_models

CONFIG = ExtractionConfig(
    draws=2, self_correction=SelfCorrection(share=0.6, top_k=5), batch_size=4, documents_per_shard=5
)


class Killed(Exception):
    pass


def make_pictures(size=(12, 12), count=12):
    def info(number):
        names = dict.fromkeys(("group", "subgroup", "base", "family", "pixels"), "")
        return PictureInfo(f"p{number}", "train", {"en": TEXTS[number % 5]}, **names, attributes={})

    infos = [info(number) for number in range(count)]
    return PictureSet(PicturesConfig(size=size), infos, lambda position: tiny_models.picture(position, size), {})


TEXTS = tiny_models.TEXTS


def make_documents(numbers=range(12)):
    """Two training documents a picture, and one of each other split."""
    train = []
    for n in numbers:
        caption, picture = TEXTS[n % 5], f"p{n}"
        train.append(Document(f"t2i/{n}", "text_to_image", (Text(caption, "prompt"), Image(picture, "response"))))
        train.append(Document(f"i2t/{n}", "image_to_text", (Image(picture, "prompt"), Text(caption, "response"))))
    edit = Document("edit", "edit", (Image("p0", "prompt"), Text("make it blue", "prompt"), Image("p1", "response")))
    return {"train": train, "validation": [edit], "heldout": train[:1]}


def run(out, documents=None, config=CONFIG, pictures=None, seed=0, **options):
    return extract(
        config,
        PictureSetSource(pictures or make_pictures(), documents or make_documents(), config.batch_size),
        tiny_models.codec(),
        tiny_models.text_tokenizer(),
        out,
        seed=seed,
        **options,
    )


def read(out, split):
    source = open_shards(out, verify="full").source(split)
    documents = [source[number] for number in range(len(source))]
    return {document.key: document for document in documents}


def plain_codes(key, size=(12, 12)):
    image = tiny_models.picture(int(key[1:]), size)
    return tiny_models.codec().encode(image[None])[0][0]


def files(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "shards"
    return out, run(out)


def test_every_document_is_written_once_a_draw_with_its_texts_and_pictures(extracted):
    tokenizer = tiny_models.text_tokenizer()
    for split, documents in make_documents().items():
        records = read(extracted[0], split)
        draws = CONFIG.draws if split == "train" else 1
        expected = {f"{document.key}#{draw}": document for document in documents for draw in range(draws)}
        assert records.keys() == expected.keys()
        for key, document in expected.items():
            assert records[key].task == document.task
            for segment, encoded in zip(document.segments, records[key].segments, strict=True):
                assert encoded.role == segment.role
                if isinstance(segment, Text):
                    assert isinstance(encoded, EncodedText) and tokenizer.decode(encoded.ids.tolist()) == segment.text
                else:
                    plain = plain_codes(segment.key)
                    assert isinstance(encoded, EncodedImage) and encoded.size == (12, 12)
                    # Self-correction changes what is left for the scales after the first, so their targets too.
                    same = slice(None) if split != "train" else slice(1)
                    assert np.array_equal(encoded.targets[same], plain[same])
                    assert split == "train" or np.array_equal(encoded.inputs, plain)


def test_manifest_says_what_there_is_and_how_it_was_made(extracted):
    out, result = extracted
    manifest = result.manifest
    assert manifest == open_shards(out).manifest
    assert [(s.name, s.documents, s.pictures, s.draws, s.records) for s in manifest.splits] == [
        ("train", 24, 24, 2, 48), ("validation", 1, 2, 1, 1), ("heldout", 1, 1, 1, 1)
    ]  # fmt: skip
    assert [shard.records for shard in manifest.split("train").shards] == [10, 10, 10, 10, 8]
    assert (manifest.text_size, manifest.codebook_size) == (tiny_models.text_tokenizer().size, 24)
    assert manifest.made_from["config"]["self_correction"]["share"] == 0.6
    assert "root" not in manifest.made_from["pictures"]


def test_directory_holds_shards_index_manifest_and_the_tokenizers(extracted):
    out, result = extracted
    shards = {shard.file for split in result.manifest.splits for shard in split.shards}
    assert {path.name for path in out.iterdir()} == {*shards, "index", "manifest.json", "tokenizer"}
    bundle = load_bundle(out / "tokenizer")
    assert bundle.codec.fingerprint == result.manifest.vision_tokenizer
    assert bundle.text_tokenizer.fingerprint == result.manifest.text_tokenizer


def test_draws_differ_and_all_documents_of_a_draw_show_the_same(extracted):
    records = read(extracted[0], "train")
    differing = corrected = 0
    for n in range(12):
        first, second = (records[f"t2i/{n}#{draw}"].segments[1] for draw in range(2))
        corrected += np.sum(first.inputs != first.targets)
        differing += not np.array_equal(first.inputs, second.inputs)
        both = records[f"i2t/{n}#0"].segments[0]
        assert np.array_equal(first.inputs, both.inputs) and np.array_equal(first.targets, both.targets)
    assert differing >= 8 and corrected >= 12


def test_draws_of_a_picture_depend_on_its_key_alone(extracted, tmp_path):
    """Half of the documents, so other batches."""
    run(tmp_path / "half", make_documents(range(1, 12, 2)))
    whole, half = read(extracted[0], "train"), read(tmp_path / "half", "train")
    assert len(half) == 24
    for key, record in half.items():
        for ours, theirs in zip(record.segments, whole[key].segments):
            if isinstance(ours, EncodedImage):
                assert np.array_equal(ours.inputs, theirs.inputs) and np.array_equal(ours.targets, theirs.targets)


def test_seeds_differ(extracted, tmp_path):
    run(tmp_path / "other", seed=1)
    ours, theirs = read(extracted[0], "train"), read(tmp_path / "other", "train")
    assert any(
        not np.array_equal(ours[f"t2i/{n}#0"].segments[1].inputs, theirs[f"t2i/{n}#0"].segments[1].inputs)
        for n in range(12)
    )


def test_samples_share_leaves_whole_pictures_uncorrected(tmp_path):
    run(tmp_path / "out", config=dataclasses.replace(CONFIG, samples_share=0.5, draws=4))
    images = [record.segments[1] for key, record in read(tmp_path / "out", "train").items() if key.startswith("t2i")]
    plain = sum(np.array_equal(image.inputs, image.targets) for image in images)
    assert len(images) == 48 and 12 < plain < 36


def test_wide_pictures_are_extracted(tmp_path):
    config = dataclasses.replace(CONFIG, draws=1, self_correction=SelfCorrection(share=0.0))
    run(tmp_path / "out", config=config, pictures=make_pictures((8, 16)))
    records = read(tmp_path / "out", "validation")
    image = records["edit#0"].segments[2]
    assert image.size == (8, 16) and len(image.targets) == tiny_models.FAMILY.schedule((8, 16)).num_tokens
    assert np.array_equal(image.targets, plain_codes("p1", (8, 16)))


@pytest.mark.parametrize("after", [1, 12, 20, 49])
def test_a_killed_run_goes_on_to_the_same_bytes(after, extracted, tmp_path):
    out = tmp_path / "out"

    def kill(done, total):
        assert total == 50
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        run(out, progress=kill)
    assert not (out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record") if path.name[0] != "."}
    assert len(kept) == {1: 0, 12: 1, 20: 1, 49: 5}[after]
    result = run(out)
    assert not result.finished_before
    assert files(out) == files(extracted[0])
    assert all((out / name).stat().st_mtime_ns == written for name, written in kept.items())


def test_a_run_killed_while_finishing_goes_on_to_the_same_bytes(extracted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for step in ("_write_shards", "_write_manifest"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(extraction, step, lambda *_: (_ for _ in ()).throw(Killed))
            run(out)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(extraction, "_clean_up", lambda *_: (_ for _ in ()).throw(Killed))
        run(out)
    assert (out / "manifest.json").exists() and files(out) != files(extracted[0])
    assert run(out).finished_before
    assert files(out) == files(extracted[0])


def test_a_finished_directory_is_left_as_it_is(extracted):
    out, _ = extracted
    before = files(out)
    again = run(out)
    assert again.finished_before and not again.tallies and files(out) == before


def test_an_index_of_another_extraction_is_refused_at_once(extracted, tmp_path):
    run(tmp_path / "other", make_documents(range(6)))
    shutil.copytree(extracted[0], tmp_path / "out")
    open_shards(tmp_path / "out")
    shutil.copytree(tmp_path / "other" / "index", tmp_path / "out" / "index", dirs_exist_ok=True)
    with pytest.raises(UserError, match="out/index is of other shards than the manifest beside it; copy it"):
        open_shards(tmp_path / "out")


def test_other_inputs_are_refused_and_named(extracted, tmp_path):
    with pytest.raises(UserError, match="config.draws was 2, is 3.*; choose another directory"):
        run(extracted[0], config=dataclasses.replace(CONFIG, draws=3))
    with pytest.raises(Killed):
        run(tmp_path / "out", progress=lambda done, total: (_ for _ in ()).throw(Killed))
    with pytest.raises(UserError, match="documents.train was .*seed was 0, is 1"):
        run(tmp_path / "out", make_documents(range(6)), seed=1)


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no shards; choose another"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unsupported_picture_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="16x16 is not supported; this model knows 12x12, 8x16"):
        run(tmp_path / "out", pictures=make_pictures((16, 16)))


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(UserError, match="no training document"):
        run(tmp_path / "out", {**make_documents(), "train": []})


def test_codes_do_not_depend_on_what_the_cache_keeps(extracted, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_codes, "_CACHED_CODES", 0)
    result = run(tmp_path / "out")
    assert files(tmp_path / "out") == files(extracted[0])
    assert result.tallies[12, 12].images > extracted[1].tallies[12, 12].images


@pytest.mark.parametrize(
    "change",
    [
        {"max_broken_share": -0.1},
        {"draws": 0}, {"batch_size": 0}, {"documents_per_shard": 0}, {"samples_share": 1.5}, {"tasks": ("edits",)},
        {"samples_share": 0.0}, {"self_correction": SelfCorrection(share=0.0)},
        {"self_correction": SelfCorrection(top_k=0)}, {"max_images": -1}, {"ladder": (1, 2)}, {"sizes": ((8, 8),)},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_faults(change):
    with pytest.raises(UserError, match="config.*(use|did you mean edit)"):
        preflight(dataclasses.replace(CONFIG, **change))
