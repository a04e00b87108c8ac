import pytest

from nextflow_jax.config import preflight
from nextflow_jax.data.filters.config import (
    MAX_NEAR_DISTANCE,
    BalanceConfig,
    BucketFilter,
    DuplicatesConfig,
    FiltersConfig,
    PictureFilter,
    TextFilter,
)
from nextflow_jax.errors import UserError

FAULTS = {
    "pictures.min_side": FiltersConfig(pictures=PictureFilter(min_side=-1)),
    "pictures.min_pixels": FiltersConfig(pictures=PictureFilter(min_pixels=-1)),
    "pictures.max_ratio": FiltersConfig(pictures=PictureFilter(max_ratio=0.5)),
    "buckets.sizes": FiltersConfig(buckets=BucketFilter(sizes=((0, 64),))),
    "buckets.max_zoom": FiltersConfig(buckets=BucketFilter(max_zoom=0.0)),
    "buckets.max_crop": FiltersConfig(buckets=BucketFilter(max_crop=1.5)),
    "buckets.as_label": FiltersConfig(buckets=BucketFilter(as_label=True)),
    "texts.min_characters": FiltersConfig(texts=TextFilter(min_characters=-1)),
    "texts.max_characters": FiltersConfig(texts=TextFilter(min_characters=5, max_characters=4)),
    "texts.scripts": FiltersConfig(texts=TextFilter(scripts=("Latim",))),
    "texts.min_script_share": FiltersConfig(texts=TextFilter(min_script_share=0.0)),
    "texts.tasks": FiltersConfig(texts=TextFilter(tasks=("captions",))),
    "duplicates.near_distance": FiltersConfig(duplicates=DuplicatesConfig(near_distance=MAX_NEAR_DISTANCE + 1)),
    "duplicates.near_colour": FiltersConfig(duplicates=DuplicatesConfig(near_colour=256)),
    "duplicates.repeats_of_text": FiltersConfig(duplicates=DuplicatesConfig(repeats_of_text=-1)),
    "duplicates.near_with_text": FiltersConfig(duplicates=DuplicatesConfig(near_with_text=("video",))),
    "duplicates.text_tasks": FiltersConfig(duplicates=DuplicatesConfig(text_tasks=("texts",))),
    "balance.max_per_label": FiltersConfig(balance=BalanceConfig(max_per_label=-1)),
    "balance.max_times_median": FiltersConfig(balance=BalanceConfig(max_times_median=-0.5)),
}


def test_defaults_break_no_rule():
    preflight(FiltersConfig())


@pytest.mark.parametrize("field", FAULTS)
def test_broken_rules_name_the_field(field):
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        preflight(FAULTS[field])


def test_near_duplicates_need_decoded_pictures():
    near = DuplicatesConfig(near_distance=4)
    preflight(FiltersConfig(duplicates=near))
    with pytest.raises(UserError, match="need pictures.decode"):
        preflight(FiltersConfig(pictures=PictureFilter(decode=False), duplicates=near))


def test_a_misspelt_script_is_corrected():
    with pytest.raises(UserError, match="Cyrillic"):
        preflight(FiltersConfig(texts=TextFilter(scripts=("Cyrilic",))))
