"""A URL is refused wherever a folder of that name would be made."""

import pathlib

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.folders import require_folder, url_rule


@pytest.mark.parametrize("folder", ["gs://bucket/run", "s3://b", "hdfs://h:1/x", pathlib.Path("gs://bucket/run")])
def test_urls(folder):
    with pytest.raises(UserError, match="--out .*is a URL, not a folder; mount the bucket .*--bucket NAME"):
        require_folder("--out", folder)


@pytest.mark.parametrize("folder", ["", "run", "/bucket/run", "a:b", "runs/gs:x/y", "C:/runs", pathlib.Path("~/b")])
def test_folders(folder):
    require_folder("--out", folder)
    assert not url_rule(folder)
