"""OpenMoji as the tests of this room use it: a tiny drawn data set, and all pictures without pixels."""

import pytest

from nextflow_jax.data.openmoji.names import list_emoji
from nextflow_jax.data.openmoji.splits import assign_splits
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet, open_pictures


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    return tmp_path_factory.mktemp("openmoji")


@pytest.fixture(scope="session")
def tiny_config(tiny_root):
    return PicturesConfig(root=str(tiny_root), size=(16, 16), subset="tiny")


@pytest.fixture(scope="session")
def tiny(tiny_config):
    """The tiny subset at 16 x 16 pixels. Not to be changed on disk."""
    return open_pictures(tiny_config)


@pytest.fixture(scope="session")
def splits():
    return assign_splits(list_emoji())


@pytest.fixture(scope="session")
def undrawn(splits):
    """All of OpenMoji with English and French captions; every picture counts as different, none can be looked at."""
    config = PicturesConfig(subset="all", languages=("en", "fr"))
    infos = [
        PictureInfo(
            key=entry.key,
            split=splits.of[entry.key],
            captions={language: entry.captions[language] for language in config.languages},
            group=entry.group,
            subgroup=entry.subgroup,
            base=entry.base,
            family=entry.family,
            attributes=entry.attributes,
            pixels=entry.key,
        )
        for entry in list_emoji()
    ]
    return PictureSet(config, infos, read_image=None, metadata={})
