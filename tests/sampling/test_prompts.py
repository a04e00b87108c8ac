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


def test_the_unguided_half_can_lack_pictures_too():
    """Nothing but <bos>, which is a text-to-image document whose text was dropped."""
    bundle, picture = tiny_models.bundle(last_scale_context=True), tiny_models.picture(0, (8, 16))
    settings = SamplingSettings(guidance=2.0, guidance_drops="all")
    [prompt] = make_prompts([edit([picture, picture], "make it blue", settings=settings)], bundle)
    before = plain.image(bundle, (8, 16), picture=picture, context=True)
    assert same(prompt.guided, plain.layout(bundle, [before, before, plain.text(bundle, "make it blue")]))
    assert same(prompt.unguided, plain.layout(bundle, [])) and len(prompt.unguided) == 1
    [asked] = make_prompts([Request((picture, "a red sun"), max_images=0, settings=settings)], bundle)
    assert same(asked.guided, asked.unguided) and not asked.is_guided


def test_sizes_that_the_text_may_choose_need_room_for_the_largest():
    bundle = tiny_models.bundle()
    square, wide = (make_prompts([text_to_image("sun", size=size)], bundle)[0] for size in ((12, 12), "2:1"))
    [auto] = make_prompts([text_to_image("sun", size="auto")], bundle)
    assert (square.picture_codes, wide.picture_codes, auto.picture_codes) == (14, 12, 14)
    assert auto.size_after([]) == (12, 12) and auto.size_after(["<size 2:1>"]) == (8, 16)
    [told] = make_prompts([text_to_image("sun <size 8x16>", size="auto")], bundle)
    assert told.size_after([]) == (8, 16) and told.size_after(["no, <size 1:1>"]) == (12, 12)


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
        (Request(("sun",), max_thought_tokens=4), "set begin_with_image too"),
        (Request(("sun",), begin_with_image=True, max_thought_tokens=-1), "max_thought_tokens -1"),
        (text_to_image("sun", size="huge"), "size 'huge'"),
        (caption(tiny_models.picture(0), end_mark="the dark sun"), "give one that is one"),
        (text_to_image("sun", size="condition"), "the prompt has no picture"),
        (text_to_image("sun", settings=SamplingSettings(guidance_scales=(4, 9))), "have 3"),
        (
            edit([tiny_models.picture(0)] * 8, "sun"),
            "120 of them are 8 pictures: leave some out",
        ),
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
