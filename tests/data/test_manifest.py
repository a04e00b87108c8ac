import dataclasses
import json

import pytest

from nextflow_jax.data.manifest import FILE_NAME, Manifest, check_fingerprints, read_manifest
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily


def test_survives_the_round_trip(shard_set, tmp_path):
    (tmp_path / FILE_NAME).write_text(shard_set.manifest.to_json())
    assert read_manifest(tmp_path) == shard_set.manifest


def test_other_schema_version_is_refused(shard_set, tmp_path):
    (tmp_path / FILE_NAME).write_text(dataclasses.replace(shard_set.manifest, schema_version=99).to_json())
    with pytest.raises(UserError, match="schema version 99; this program reads versions 1 and 2; extract"):
        read_manifest(tmp_path)


def test_missing_manifest_names_the_command(tmp_path):
    with pytest.raises(UserError, match="no finished extraction; make it with python -m nextflow_jax.extract"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"schema_version": 1, "splits": 3})])
def test_other_files_of_that_name_are_refused(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match="manifest.json"):
        read_manifest(tmp_path)


def test_other_tokenizers_are_refused_and_both_named(shard_set):
    manifest = shard_set.manifest
    same = {
        "text_tokenizer": manifest.text_tokenizer,
        "vision_tokenizer": manifest.vision_tokenizer,
        "schedule_family": manifest.schedule_family,
    }
    check_fingerprints(manifest, **same)
    with pytest.raises(UserError, match="vision tokenizer: shards have vision-a, the model has vision-b"):
        check_fingerprints(manifest, **{**same, "vision_tokenizer": "vision-b"})
    others = {"text_tokenizer": "text-b", "schedule_family": ScheduleFamily()}
    with pytest.raises(UserError, match="text-a, the model has text-b.*ladder=.*ladder="):
        check_fingerprints(manifest, **{**same, **others})


def test_unknown_split_names_those_there_are(shard_set):
    with pytest.raises(UserError, match="no split 'test'; they have train, validation"):
        shard_set.index("test")


def test_json_is_the_same_for_equal_manifests(shard_set):
    again = Manifest(**{field.name: getattr(shard_set.manifest, field.name) for field in dataclasses.fields(Manifest)})
    assert again.to_json() == shard_set.manifest.to_json()
