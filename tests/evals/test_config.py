import pytest

from nextflow_jax.evals.config import TokenizerEvaluationConfig


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"pictures": 0}, "pictures"),
        ({"batch_size": 0}, "batch_size"),
        ({"shown": -1}, "shown"),
        ({"splits": ()}, "splits"),
        ({"splits": ("test",)}, "splits"),
        ({"splits": ("train", "train")}, "splits"),
        ({"lpips_vgg": "a"}, "lpips_linear"),
        ({"lpips_linear": "a"}, "lpips_vgg"),
    ],
)
def test_each_rule_names_its_field(changed, field):
    assert [fault.field for fault in TokenizerEvaluationConfig(**changed).faults()] == [field]


def test_the_defaults_break_no_rule():
    assert not list(TokenizerEvaluationConfig().faults())
