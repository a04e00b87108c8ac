"""The table of documents: every data set of pictures is in it."""

import dataclasses

import pytest

from nextflow_jax.data import document_sources
from nextflow_jax.data.pictures import SOURCES, PictureSet
from nextflow_jax.errors import UserError
from tests.training import small


def renamed(name):
    drawn = small.open_drawn(small.PICTURES)
    return PictureSet(dataclasses.replace(drawn.config, name=name), drawn.infos(), lambda position: None, {})


def test_every_data_set_has_documents():
    assert set(SOURCES) - {"drawn"} <= set(document_sources.DOCUMENTS)


def test_the_name_chooses():
    assert document_sources.make_documents(renamed("folder"), "train", ["text_to_image"], 0)
    with pytest.raises(UserError, match="config.pictures.name 'openmogi' is not known; did you mean openmoji"):
        document_sources.make_documents(renamed("openmogi"), "train", ["text_to_image"], 0)
