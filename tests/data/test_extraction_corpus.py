"""Extraction of a corpus, against codes of its pictures one by one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from nextflow_jax.data.buckets import nearest_size
from nextflow_jax.data.corpus.raw import RawImage, RawText
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.extraction import ExtractionConfig, extract
from nextflow_jax.data.extraction_check import check_extraction
from nextflow_jax.data.extraction_corpus import CorpusDocuments
from nextflow_jax.data.extraction_source import ExtractionSource
from nextflow_jax.data.image_files import ImageLimits, read_image
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig
from nextflow_jax.data.ingest.driver import ingest
from nextflow_jax.data.pictures import FolderConfig, PicturesConfig, open_pictures
from nextflow_jax.data.records import EncodedImage, EncodedText, encode
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.quantizer import SelfCorrection
from tests import tiny_models
from tests.data.conftest import flip_byte
from tests.data.ingest.conftest import encode_picture

CONFIG = ExtractionConfig(
    draws=2, self_correction=SelfCorrection(share=0.6, top_k=5), batch_size=4, documents_per_shard=8
)
COUNT = 30
SIZES = ((24, 24), (16, 40), (30, 28), (20, 44))


class Killed(Exception):
    pass


def write_source(folder):
    """Pairs of four picture sizes, of which one in three has a second picture and one in five no picture at all."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(COUNT):
        (folder / "images" / f"{i}.png").write_bytes(encode_picture(i, SIZES[i % 4]))
        picture = {"image": f"images/{i}.png", "role": "response"}
        segments = [{"text": f"picture {i}", "role": "prompt"}, picture]
        if i % 3 == 0:
            segments.append({"text": "and again", "role": "prompt", "loss": False})
            segments.append({"image": f"images/{i // 2}.png", "role": "response", "loss": i % 2 == 0})
        task = "interleaved" if i % 3 == 0 else "text_to_image"
        if i % 5 == 0:
            segments, task = [{"text": f"words of {i}", "role": "response"}], "text"
        lines.append(json.dumps({"id": str(i), "task": task, "segments": segments}))
    (folder / "all.jsonl").write_text("\n".join(lines))
    return folder / "all.jsonl"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    source = SourceConfig("web", paths=(str(write_source(folder / "source")),), licence="CC0")
    ingest(IngestConfig(sources=(source,), validation_share=0.2, workers=1), folder / "corpus")
    return open_corpus(folder / "corpus")


def source_of(corpus, config=CONFIG):
    pictures = PicturesConfig(name="corpus", root=str(corpus.directory))
    return CorpusDocuments(corpus, pictures, config.tasks, config.max_images, config.batch_size)


def run(corpus, out, config=CONFIG, codec=None, **options):
    tokenizers = codec or tiny_models.codec(), tiny_models.text_tokenizer()
    return extract(config, source_of(corpus, config), *tokenizers, out, seed=0, **options)


def files(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def extracted(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "shards"
    return out, run(corpus, out)


def read(out, split):
    source = open_shards(out, verify="full").source(split)
    return [source[number] for number in range(len(source))]


def test_it_is_a_source(corpus):
    assert isinstance(source_of(corpus), ExtractionSource)


def test_documents_keep_all_they_had_and_pictures_become_the_codes_of_the_nearest_size(corpus, extracted):
    raw, tokenizer = corpus.source("validation"), tiny_models.text_tokenizer()
    documents = read(extracted[0], "validation")
    assert len(documents) == len(raw) > 2
    seen = set()
    for number, document in enumerate(documents):
        original = raw[number]
        assert document.key == f"{original.key}#0"
        assert (document.task, document.source, document.licence) == (original.task, "web", "CC0")
        for ours, theirs in zip(document.segments, original.segments, strict=True):
            assert (ours.role, ours.loss) == (theirs.role, theirs.loss)
            if isinstance(theirs, RawText):
                assert isinstance(ours, EncodedText) and tokenizer.decode(ours.ids.tolist()) == theirs.text
                continue
            assert isinstance(theirs, RawImage) and isinstance(ours, EncodedImage)
            assert ours.size == nearest_size(theirs.size, tiny_models.FAMILY.sizes)
            pixels = read_image(theirs.data, ours.size, "#ffffff", PicturesConfig().folder.limits)
            assert np.array_equal(ours.targets, tiny_models.codec().encode(pixels[None])[1][0])
            seen.add(ours.size)
    assert seen == set(tiny_models.FAMILY.sizes)


def test_the_index_and_the_manifest_count_them(corpus, extracted):
    shards = open_shards(extracted[0])
    index = shards.index("train")
    assert index.sources == ("web",) and set(index.tasks) == {"interleaved", "text_to_image", "text"}
    entry = shards.manifest.split("train")
    assert entry.documents == len(corpus.source("train")) and entry.records == 2 * entry.documents and not entry.lost
    documents = [document for document in read(extracted[0], "train") if document.key.endswith("#0")]
    assert entry.pictures == sum(isinstance(one, EncodedImage) for each in documents for one in each.segments)
    assert sum(tally.images for tally in extracted[1].tallies.values()) >= 2 * entry.pictures


def test_draws_differ_in_their_inputs(extracted):
    by_key = {document.key: document for document in read(extracted[0], "train")}
    pairs = [(by_key[key], by_key[f"{key[:-1]}1"]) for key in by_key if key.endswith("#0")]
    segments = [pair for both in pairs for pair in zip(*(one.segments for one in both))]
    images = [pair for pair in segments if isinstance(pair[0], EncodedImage)]
    assert sum(not np.array_equal(first.inputs, second.inputs) for first, second in images) > len(images) / 2


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(processes, corpus, extracted, tmp_path):
    out = tmp_path / "out"
    results = [run(corpus, out, process=number, processes=processes) for number in range(processes)]
    assert [result.manifest is None for result in results] == [True] * (processes - 1) + [False]
    assert files(out) == files(extracted[0])


@pytest.mark.parametrize("devices", [1, 4])
def test_any_number_of_devices_writes_the_same_bytes(devices, corpus, extracted, tmp_path):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("data",))
    plain = tiny_models.codec()
    result = run(corpus, tmp_path / "out", codec=VisionTokenizerCodec(plain.config, plain.variables, 4, mesh=mesh))
    assert result.manifest is not None
    theirs = files(extracted[0])
    ours = files(tmp_path / "out")
    assert {name: data for name, data in ours.items() if "tokenizer" not in name} == {
        name: data for name, data in theirs.items() if "tokenizer" not in name
    }


def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(corpus, extracted, tmp_path):
    for after in np.random.default_rng(0).integers(1, 50, 6).tolist():
        out = tmp_path / str(after)

        def kill(done, total, after=after):
            if done >= after:
                raise Killed

        with pytest.raises(Killed):
            run(corpus, out, progress=kill)
        run(corpus, out)
        assert files(out) == files(extracted[0])


def with_refused_pictures(corpus, config):
    """Pictures of the largest of SIZES are refused."""
    pictures = PicturesConfig(name="corpus", folder=FolderConfig(limits=ImageLimits(max_pixels=860)))
    return CorpusDocuments(corpus, pictures, config.tasks, config.max_images, config.batch_size)


def extract_refused(corpus, out, config):
    tokenizers = tiny_models.codec(), tiny_models.text_tokenizer()
    return extract(config, with_refused_pictures(corpus, config), *tokenizers, out, seed=0)


def test_documents_with_refused_pictures_are_counted_and_the_others_stay(corpus, extracted, tmp_path):
    config = dataclasses.replace(CONFIG, max_broken_share=0.5)
    extract_refused(corpus, tmp_path / "out", config)
    for split in ("train", "validation"):
        raw = [corpus.source(split)[number] for number in range(len(corpus.source(split)))]
        refused = {one.key for one in raw if any(isinstance(s, RawImage) and s.size == SIZES[3] for s in one.segments)}
        whole = read(extracted[0], split)
        entry = open_shards(tmp_path / "out").manifest.split(split)
        assert entry.lost == ({"picture: too large": len(refused)} if refused else {})
        kept = [document for document in whole if document.key[:-2] not in refused]
        left = read(tmp_path / "out", split)
        assert [encode(document) for document in left] == [encode(document) for document in kept]
    assert check_extraction(
        config, with_refused_pictures(corpus, config), tiny_models.codec(), tiny_models.text_tokenizer(),
        tmp_path / "out", seed=0, documents=1000,
    ) == COUNT  # fmt: skip


def test_too_many_broken_documents_stop_with_the_key(corpus, tmp_path):
    found = r"1 of 30 documents are broken, the last one web/\d+ \(picture: too large\).* 0\.01"
    with pytest.raises(UserError, match=found):
        extract_refused(corpus, tmp_path / "out", CONFIG)


def test_damaged_records_of_the_corpus_are_counted(corpus, tmp_path):
    """All that ArrayRecord compressed together."""
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.directory, copy)
    part = copy / corpus.manifest.parts[0].file
    flip_byte(part, part.stat().st_size // 2)
    config = dataclasses.replace(CONFIG, max_broken_share=1.0)
    manifest = run(open_corpus(copy), tmp_path / "out", config).manifest
    lost = sum(split.lost.get("broken record", 0) for split in manifest.splits)
    assert 0 < lost <= COUNT and sum(split.documents for split in manifest.splits) == COUNT - lost


def test_tasks_and_pictures_that_are_not_wanted_are_counted(corpus, tmp_path):
    config = dataclasses.replace(CONFIG, tasks=("interleaved",), max_images=1, draws=1)
    entry = run(corpus, tmp_path / "out", config).manifest.split("train")
    assert set(entry.lost) == {"task not asked for"}
    for document in read(tmp_path / "out", "train"):
        assert document.task == "interleaved"
        assert [type(one) for one in document.segments] == [EncodedText, EncodedImage]


def test_a_sample_extracted_again_is_the_same_and_a_change_is_found(corpus, extracted):
    arguments = (CONFIG, source_of(corpus), tiny_models.codec(), tiny_models.text_tokenizer(), extracted[0])
    assert check_extraction(*arguments, seed=0, documents=12) >= 12
    assert check_extraction(*arguments, seed=0, documents=1000) == COUNT
    with pytest.raises(UserError, match=r"documents of .* differ, the first web/\d+#\d: segment \d, (in|tar)"):
        check_extraction(*arguments, seed=1, documents=1000)


def test_a_corpus_without_training_documents_is_an_error_that_says_where_they_went(tmp_path):
    (tmp_path / "all.jsonl").write_text(json.dumps({"text": "words"}))
    source = SourceConfig("web", paths=(str(tmp_path / "all.jsonl"),), split="validation")
    ingest(IngestConfig(sources=(source,), workers=1), tmp_path / "corpus")
    with pytest.raises(UserError, match="has no training document.*corpus.json"):
        next(source_of(open_corpus(tmp_path / "corpus")).texts())


def test_a_corpus_is_no_picture_set(corpus):
    with pytest.raises(UserError, match="'corpus': a corpus is for nextflow_jax.extract; .* needs one of openmoji"):
        open_pictures(PicturesConfig(name="corpus", root=str(corpus.directory)))
