"""OpenMoji as the tests of this room use it: a tiny drawn data set, and all pictures without pixels."""

import pytest

from nextflow_jax.data.openmoji.families import SEQUENCES
from nextflow_jax.data.openmoji.names import list_emoji
from nextflow_jax.data.openmoji.splits import emoji_splits, fraction
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
    return emoji_splits()


@pytest.fixture(scope="session")
def undrawn(splits):
    """A fifth of OpenMoji's families and all with colours, hair, directions or an order; in English and French.

    Every picture counts as different, none can be looked at.
    """
    special = {sequence.name for sequence in SEQUENCES} | {"heart", "circle", "🧑", "🏃", "🧑‍🎨"}
    entries = [entry for entry in list_emoji() if entry.family in special or fraction("test", entry.family) < 0.2]
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
        for entry in entries
    ]
    return PictureSet(config, infos, read_image=lambda position: pytest.fail(f"looked at {position}"), metadata={})
