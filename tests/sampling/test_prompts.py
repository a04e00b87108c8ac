"""Prompts are what training lays out, and requests that cannot be answered are refused with a reason."""

import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import Request, caption, edit, text_to_image
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models
from tests.sampling import plain


def same(a, b):
    return all(np.array_equal(value, b.arrays()[name]) for name, value in a.arrays().items())


def test_a_prompt_is_laid_out_as_in_training_with_and_without_its_condition():
    bundle = tiny_models.bundle(last_scale_context=True)
    picture = tiny_models.picture(0, (8, 16))
    [prompt] = make_prompts([edit(picture, "make it blue", size=(12, 12))], bundle)
    before = plain.image(bundle, (8, 16), picture=picture, context=True)
    assert same(prompt.guided, plain.layout(bundle, [before, plain.text(bundle, "make it blue")]))
    assert same(prompt.unguided, plain.layout(bundle, [before]))
    assert prompt.schedule == bundle.codec.family.schedule((12, 12))


def test_a_question_about_a_picture_keeps_its_words():
    bundle = tiny_models.bundle()
    request = Request((tiny_models.picture(0), "a red sun"), max_images=0)
    [prompt] = make_prompts([request], bundle)
    assert same(prompt.guided, prompt.unguided) and len(prompt.guided) > len(bundle.text_tokenizer.encode("a red sun"))


def test_pictures_of_a_batch_keep_their_own_codes():
    bundle = tiny_models.bundle()
    pictures = [tiny_models.picture(i, size) for i, size in enumerate([(12, 12), (8, 16), (12, 12), (12, 12)])]
    prompts = make_prompts([caption(picture) for picture in [*pictures, pictures[0]]], bundle)
    for picture, prompt in zip([*pictures, pictures[0]], prompts):
        assert same(prompt.guided, plain.layout(bundle, [plain.image(bundle, picture.shape[:2], picture=picture)]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (text_to_image(""), "the prompt is empty"),
        (text_to_image("  \n"), "the prompt is empty"),
        (Request(()), "the prompt is empty"),
        (text_to_image("sun", size=(12, 8)), "picture size 12x8 is not supported; this model knows 12x12, 8x16"),
        (caption(tiny_models.picture(0, (16, 8))), "picture size 16x8 is not supported; this model knows 12x12, 8x16"),
        (text_to_image("sun", seed=-1), "seed -1"),
        (text_to_image("sun", seed=2**32), "seed 4294967296"),
        (text_to_image("sun", settings=SamplingSettings(top_p=2.0)), "settings.top_p = 2.0"),
        (Request(("sun",), max_images=-1), "max_images -1"),
        (Request(("sun",), max_text_tokens=-1), "max_text_tokens -1"),
        (Request(("sun",), begin_with_image=True, max_images=0), "max_images 0 forbids"),
        (Request(("sun",), max_text_tokens=0), "leaves nothing to write"),
    ],
)
def test_what_cannot_be_answered_is_refused(request_, message):
    with pytest.raises(UserError) as error:
        make_prompts([text_to_image("sun"), request_], tiny_models.bundle())
    assert message in str(error.value)


def test_an_over_long_prompt_is_refused_by_its_length_and_the_limit():
    bundle = tiny_models.bundle(max_positions=40)
    words = "sun and moon " * 20
    length = 1 + len(bundle.text_tokenizer.encode(words))
    with pytest.raises(
        UserError, match=f"the prompt has {length} tokens; .* limit of 40 positions .* shorten it to 26"
    ):
        make_prompts([text_to_image(words)], bundle)


def test_the_longest_prompt_that_leaves_room_for_its_answer_is_taken():
    bundle = tiny_models.bundle()
    length = 1 + len(bundle.text_tokenizer.encode("sun and moon"))
    exact = length + bundle.codec.family.schedule((12, 12)).num_tokens
    [prompt] = make_prompts([text_to_image("sun and moon")], tiny_models.bundle(max_positions=exact))
    assert prompt.longest == exact
    with pytest.raises(UserError, match="shorten it"):
        make_prompts([text_to_image("sun and moon")], tiny_models.bundle(max_positions=exact - 1))
