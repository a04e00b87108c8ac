import base64
import html
import html.parser
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.data import shards
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.inspect.corpus_check import check_corpus
from nextflow_jax.data.inspect.samples import corpus_samples, make_page, shard_samples
from nextflow_jax.data.inspect.shard_check import check_shards
from nextflow_jax.data.records import EncodedImage
from nextflow_jax.errors import UserError
from tests import tiny_models
from tests.data.inspect.conftest import NASTY, damage, reads_nothing


def pictures(page):
    """Every picture's pixels by the text that stands for it, in order."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="([^"]*)"', page)
    return [(alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for data, alt in found]


class Loaded(html.parser.HTMLParser):
    """Collects what a browser would run or fetch, and unbalanced elements."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.links, self.open = 0, [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(page):
    loaded = Loaded(page)
    assert loaded.scripts == 0 and loaded.open == []
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in loaded.links)
    assert NASTY not in page and html.escape(NASTY) in page


@pytest.fixture
def page(shard_directory):
    return make_page(shard_directory, check_shards(shard_directory), shard_samples(shard_directory, 48))


def test_the_page_is_escaped_and_loads_nothing(page):
    check_page(page)
    assert "24 of 24 records read, 0 broken" in page


def test_inputs_and_targets_are_decoded_by_the_bundle_and_stand_side_by_side(page, shard_directory):
    source = shards.open_shards(shard_directory).source("validation")
    codec = tiny_models.codec()
    shown = pictures(page)
    for number in range(4):
        document = source[number]
        for place, segment in enumerate(document.segments, start=1):
            if not isinstance(segment, EncodedImage):
                continue
            differ = not np.array_equal(segment.inputs, segment.targets)
            wanted = {"inputs": segment.inputs, "targets": segment.targets} if differ else {"codes": segment.targets}
            decoded = [codec.decode(codes[None], segment.size)[0] for codes in wanted.values()]
            names = [f"{kind} of {place}" for kind in wanted]
            runs = [shown[i : i + len(names)] for i in range(len(shown))]
            assert any(
                [alt for alt, _ in run] == names and all(map(np.array_equal, (pixels for _, pixels in run), decoded))
                for run in runs
            )


def test_every_split_and_task_is_shown_with_its_words(page):
    for split in ("train", "validation"):
        for task in ("text_to_image", "image_to_text", "edit", "text"):
            assert f"Samples: {split}, {task}" in page
    assert "the dark side" in page and "no loss" in page and "CC0" in page and "d0#0" in page


def test_broken_records_are_on_the_page_and_left_out_of_the_samples(shard_directory):
    path = shard_directory / shards.shard_file("train", 0, 2)
    path.write_bytes(bytes(path.stat().st_size))
    page = make_page(shard_directory, check_shards(shard_directory), shard_samples(shard_directory, 48))
    assert "24 of 24 records read, 11 broken" in page and "broken: d3#0" in page
    check_page(page)


def test_fewer_samples_are_still_of_every_task(shard_directory):
    few = shard_samples(shard_directory, 1)
    assert len(few) == 8 and all(body.count("<figure") == 1 for _, body in few)
    assert sum(body.count("<figure") for _, body in shard_samples(shard_directory, 32)) == 16 + 4


def test_shards_without_a_bundle_have_no_samples(shard_directory):
    shutil.rmtree(shard_directory / "tokenizer")
    with pytest.raises(UserError, match="no bundle, which --html decodes"):
        shard_samples(shard_directory, 4)


def test_a_corpus_shows_its_pictures_as_they_came(corpus_directory):
    page = make_page(corpus_directory, check_corpus(corpus_directory), corpus_samples(corpus_directory, 20))
    check_page(page)
    shown = pictures(page)
    assert len(shown) == 9
    for number in range(9):
        assert any(np.array_equal(pixels, tiny_models.picture(number, (20, 30))) for _, pixels in shown)


def test_a_damaged_document_is_left_out_of_a_corpus_samples(corpus_directory):
    path = next(corpus_directory.glob("part-00001*"))
    damage(path, lambda: reads_nothing(open_corpus(corpus_directory).source("train"), 3))
    assert [each.where for each in check_corpus(corpus_directory).broken] == ["file", "train, document 3"]
    assert sum(body.count("<figure") for _, body in corpus_samples(corpus_directory, 20)) == 8
