from nextflow_jax.report.training_curves import DRAWINGS, pick_series


def test_scales_come_in_the_order_of_their_numbers():
    records = [{"step": 1, **{f"codebook/usage/scale_{k}": k for k in (10, 2, 1)}, "codebook/usage/all_scales": 1}]
    assert list(pick_series(records, r"codebook/usage/.+", False)) == ["all_scales", "scale_1", "scale_2", "scale_10"]


def test_what_is_not_positive_cannot_be_drawn_on_a_logarithmic_axis():
    records = [{"step": 1, "loss": -1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": None}]
    assert pick_series(records, "loss", True) == {"loss": ((2,), (0.5,))}
    assert pick_series(records, "loss", False) == {"loss": ((1, 2), (-1.0, 0.5))}


def test_losses_that_may_be_negative_are_not_drawn_with_those_that_are_not():
    names = ("loss/l2", "loss/generator", "loss/entropy_batch", "loss/total", "loss/r1")
    record = {"step": 1, **dict.fromkeys(names, 1.0)}
    drawn = {title: list(pick_series([record], pattern, False)) for pattern, title, _ in DRAWINGS}
    assert drawn["loss terms"] == ["l2"] and drawn["entropy terms"] == ["entropy_batch"]
    assert drawn["losses of generator and discriminator"] == ["generator", "r1"]
