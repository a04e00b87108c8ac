"""The extract command on the tiny OpenMoji subset with a tiny tokenizer bundle."""

import subprocess
import sys
import time

import numpy as np
import pytest

from nextflow_jax import extract
from nextflow_jax.bundle import load_bundle, save_bundle
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig
from nextflow_jax.data.ingest.driver import ingest
from nextflow_jax.data.records import EncodedImage
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from tests import tiny_models
from tests.data.ingest.conftest import write_pairs

EXPERIMENT = """
from nextflow_jax.config import to_config_dict
from nextflow_jax.training.experiment import EXPERIMENTS


def get_config(variant):
    config = to_config_dict(EXPERIMENTS[variant]())
    config.pictures.update(subset="tiny", size=(12, 12), root={root!r})
    if variant == "decoder":
        config.extraction.update(draws=2, batch_size=4)
        config.extraction.text.vocab_size = 400
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extract")
    (folder / "experiment.py").write_text(EXPERIMENT.format(root=str(folder / "openmoji")))
    save_bundle(folder / "bundle", vision_tokenizer=tiny_models.codec(), origin={})
    return folder


def arguments(folder, *more, variant="decoder", tokenizer="bundle", out="shards"):
    files = ["--config", f"{folder / 'experiment.py'}:{variant}", "--tokenizer", str(folder / tokenizer)]
    return [*files, "--out", str(folder / out), *more]


def test_writes_shards_of_every_split_and_leaves_finished_ones(folder, capsys):
    extract.main(arguments(folder))
    printed = capsys.readouterr()
    assert "finished" in printed.out and "images/s" in printed.out and "bytes a token" in printed.out
    assert "of 2" in printed.err or "records" in printed.err
    manifest = open_shards(folder / "shards", verify="full").manifest
    assert [split.name for split in manifest.splits] == ["train", "validation", "heldout"]
    assert manifest.split("train").records == 2 * manifest.split("train").documents > 100
    extract.main(arguments(folder))
    printed = capsys.readouterr()
    assert "was finished already" in printed.out and "images/s" not in printed.out


def test_other_settings_for_the_same_folder_are_refused(folder):
    extract.main(arguments(folder))
    with pytest.raises(UserError, match="config.draws was 2, is 1"):
        extract.main(arguments(folder, "--config.extraction.draws=1"))


def test_another_kind_of_experiment_is_refused(folder):
    with pytest.raises(
        UserError, match="config.kind = 'contrastive': only a decoder experiment.*experiment.py:decoder"
    ):
        extract.main(arguments(folder, variant="contrastive"))


def test_another_level_has_schedules_of_its_own_and_the_same_tokenizer(folder):
    """What a chain of resolution stages does: one vision tokenizer, a ladder and a picture size a stage."""
    few = ["--config.extraction.tasks=('frames', 'text_to_image')", "--config.extraction.draws=1"]
    level = ["--config.pictures.size=(16, 16)", "--config.extraction.ladder=(1, 2, 4)"]
    sizes, most = "--config.extraction.sizes=((16, 16),)", "--config.extraction.max_images=2"
    extract.main(arguments(folder, *few, *level, sizes, most, out="level"))
    shards = open_shards(folder / "level")
    assert shards.manifest.schedule_family == ScheduleFamily((1, 2, 4), 4, ((16, 16),))
    source = shards.source("train")
    documents = [source[number] for number in range(len(source))]
    pictures = [[part for part in each.segments if isinstance(part, EncodedImage)] for each in documents]
    assert {len(part.targets) for each in pictures for part in each} == {1 + 4 + 16}
    assert max(map(len, pictures)) == 2
    codec = load_bundle(shards.tokenizer_path).codec
    assert codec.fingerprint == shards.manifest.vision_tokenizer != tiny_models.codec().fingerprint
    with pytest.raises(UserError, match="sides must be multiples of stride 4"):
        extract.main(arguments(folder, *few, *level, "--config.extraction.sizes=((14, 14),)", out="other"))


def test_a_size_that_the_tokenizer_does_not_know_is_refused(folder):
    with pytest.raises(UserError, match="16x16 is not supported; this model knows 12x12, 8x16"):
        extract.main(arguments(folder, "--config.pictures.size=(16, 16)"))


def test_a_broken_rule_is_named_in_full(folder):
    with pytest.raises(UserError, match="config.extraction.draws = 0: must be positive"):
        extract.main(arguments(folder, "--config.extraction.draws=0"))


def test_a_missing_tokenizer_is_one_line_and_status_1(folder):
    command = [sys.executable, "-m", "nextflow_jax.extract", *arguments(folder, tokenizer="nowhere", out="other")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("error: --tokenizer") and result.stderr.count("\n") == 1
    assert not (folder / "other").exists()


def test_a_folder_without_checkpoints_is_no_tokenizer(folder):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        extract.main(arguments(folder, tokenizer="empty"))


def test_a_corpus_is_extracted_by_two_machines_and_verified(folder, capsys):
    pairs = write_pairs(folder / "pairs", 20)
    ingest(IngestConfig(sources=(SourceConfig(paths=(str(pairs),)),), workers=1), folder / "corpus")
    of_corpus = ["--config.pictures.name=corpus", f"--config.pictures.root={folder / 'corpus'}"]
    extract.main(arguments(folder, *of_corpus, "--process=1", "--processes=2", out="many"))
    assert "parts of other machines are missing" in capsys.readouterr().out
    extract.main(arguments(folder, *of_corpus, "--process=0", "--processes=2", out="many"))
    assert "finished" in capsys.readouterr().out
    assert open_shards(folder / "many", verify="full").manifest.split("train").documents == 20
    extract.main(arguments(folder, *of_corpus, "--verify=5", out="many"))
    assert "verified 5 documents, 0 differ" in capsys.readouterr().out
    with pytest.raises(UserError, match="--process 2 of --processes 2"):
        extract.main(arguments(folder, *of_corpus, "--process=2", "--processes=2", out="many"))


def test_a_killed_extraction_goes_on_to_the_same_bytes(folder):
    """A process, killed at random moments."""
    extract.main(arguments(folder, "--config.extraction.documents_per_shard=20", out="whole"))
    command = [sys.executable, "-m", "nextflow_jax.extract"]
    command += arguments(folder, "--config.extraction.documents_per_shard=20", out="killed")
    generator = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list((folder / "killed").glob("*.array_record")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(float(generator.random()) * 0.3)
        process.kill()
        process.wait()
    extract.main(arguments(folder, "--config.extraction.documents_per_shard=20", out="killed"))
    contents = [
        {str(path.relative_to(folder / out)): path.read_bytes() for path in (folder / out).rglob("*") if path.is_file()}
        for out in ("whole", "killed")
    ]
    assert contents[0] == contents[1]
