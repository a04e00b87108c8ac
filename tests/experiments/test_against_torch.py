"""The comparison with PyTorch, without PyTorch: our side at a tiny size, the driver with sides that are made up."""

import argparse
import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest

from experiments.bench import against_torch, decoder_sizes, our_decoder
from experiments.bench.decoder_sizes import SIZES, Draw
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def ours():
    return our_decoder.OurSide(argparse.Namespace(cores=[0]), TINY)


def test_the_sizes_are_those_that_were_asked_for():
    sizes = SIZES["issue"]
    decoder = Decoder(our_decoder.decoder_config(sizes))
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), DecoderInputs.zeros(1, 1, 4))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert (sizes.layers, sizes.width, sizes.rows, sizes.tokens) == (8, 256, 16, 155)
    assert abs(count / 10.7e6 - 1) < 0.01


def test_a_row_is_a_picture_and_its_mask_is_block_causal():
    batch = our_decoder.training_batch(TINY)
    scale = np.repeat(np.arange(3), TINY.cells)
    seen = batch["attend_end"][0][:, None] > np.arange(TINY.tokens)
    np.testing.assert_array_equal(seen, scale[:, None] >= scale)
    assert not batch["attend_start"].any() and (batch["loss_weights"] == 1).all()
    np.testing.assert_array_equal(batch["targets"], decoder_sizes.training_codes(TINY) + TINY.text_size + 5)


def test_our_side_trains_from_the_weights_it_wrote(ours, tmp_path):
    ours.save(str(tmp_path / "weights.npz"))
    ours.logits(str(tmp_path / "logits.npz"))
    logits = np.load(tmp_path / "logits.npz")["logits"].astype(np.float64)
    targets = our_decoder.training_batch(TINY)["targets"][..., None]
    normaliser = np.log(np.exp(logits).sum(axis=-1))
    expected = (normaliser - np.take_along_axis(logits, targets, axis=-1)[..., 0]).mean()
    losses = ours.losses(3)
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert losses[0] > losses[1] > losses[2]
    ours.save(str(tmp_path / "again.npz"))
    assert ours.losses(3) == losses
    weights = np.load(tmp_path / "weights.npz")
    assert sum(weights[name].size for name in weights) == ours.describe()["parameters"]


def test_our_side_samples_pictures_from_prompts(ours):
    greedy = Draw(batch=2, guidance=3.0, temperature=0.0)
    codes = np.asarray(ours.codes(greedy))
    assert codes.shape == (2, TINY.tokens) and codes.min() >= 0 and codes.max() < TINY.codes
    np.testing.assert_array_equal(codes, ours.codes(greedy))
    drawn = np.asarray(ours.codes(dataclasses.replace(greedy, temperature=1.0)))
    assert (drawn != codes).any()
    assert len(ours.sample(greedy, 0.0)) == 3


def test_a_side_obeys_line_by_line(monkeypatch):
    class Counting:
        def sample(self, draw, seconds):
            return [seconds, draw.batch]

        def train(self, seconds):
            raise ValueError("two\nlines")

    orders = [{"do": "sample", "draw": vars(Draw(2, 3.0)), "seconds": 0.5}, {"do": "train", "seconds": 1.0}]
    answers = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(order) + "\n" for order in orders)))
    monkeypatch.setattr(sys, "__stdout__", answers)
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    decoder_sizes.serve(lambda options, sizes: Counting(), ["--sizes", "tiny", "--cores", "0"])
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"result": [0.5, 2]},
        {"error": "ValueError: two lines"},
    ]


class MadeUp:
    """A side of given times, one a round; the first of them compiles."""

    def __init__(self, name, times=(), **files):
        self.name, self.times, self.files = name, iter(times), files

    def __call__(self, do, **arguments):
        if do == "train":
            try:
                return [next(self.times)] * 3
            except StopIteration:
                raise against_torch.SideError(f"{self.name} ended") from None
        if do == "logits":
            np.savez(arguments["path"], logits=self.files["logits"])
        return self.files.get(do)


def test_ratios_are_taken_round_by_round_and_a_failing_side_is_left_out():
    sides = [
        MadeUp("ours", [9, 1.0, 2.0, 4.0]),
        MadeUp("torch", [9, 3.0, 4.0, 8.0]),
        MadeUp("compiled", [9, 3.0]),
        MadeUp("VAR", [9, 1.0, 2.0, 4.0]),
    ]
    row = against_torch.measure("train", ("train", {}, 8), sides, rounds=3, seconds=1.0)
    assert row["ours"] == {"seconds": 2.0, "per_second": 4.0, "ratio": 1.0}
    assert row["torch"] == {"seconds": 4.0, "per_second": 2.0, "ratio": 2.0}
    assert row["failed"] == {"compiled": "compiled ended"} and "compiled" not in row
    assert row["ratio_to_faster"] == 2.0
    lines = against_torch.table([row], ["ours", "torch", "compiled", "VAR"]).splitlines()
    assert lines[1].split() == ["train,", "tokens/s", "4.00", "2.00", "-", "4.00", "2.00", "-", "1.00", "2.00"]


def test_decoders_that_differ_are_not_timed(tmp_path):
    same = {"logits": np.ones(3), "losses": [2.0, 1.0], "codes": [[1, 2], [3, 4]]}
    other = {"logits": np.array([1, 1, 1.01]), "losses": [2.0, 1.1], "codes": [[1, 0], [0, 4]]}
    found = against_torch.check_same(MadeUp("ours", **same), MadeUp("torch", **same), TINY, tmp_path)
    assert found == {"largest_logit_difference": 0, "largest_loss_difference": 0, "rows_with_equal_codes": 1}
    for name, value in other.items():
        with pytest.raises(UserError, match="do not compute the same"):
            theirs = MadeUp("torch", **{**same, name: value})
            against_torch.check_same(MadeUp("ours", **same), theirs, TINY, tmp_path)


def test_without_torch_it_says_how_to_install_it(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"No module named 'torch'.*pip install torch numpy.*--torch-python"):
        against_torch.main(["--torch-python", str(python)])
    with pytest.raises(UserError, match="No such file"):
        against_torch.main(["--torch-python", str(tmp_path / "nowhere")])


def test_every_way_of_sampling_is_measured():
    options = against_torch.parse(["--batches", "16", "1", "--sizes", "tiny", "--cores", "0"])
    found = against_torch.measurements(options)
    assert list(found) == ["train"] + [
        f"sample {batch}{guided}{filtered}"
        for batch in (16, 1) for guided in ("", " guided") for filtered in ("", " filtered")
    ]  # fmt: skip
    assert found["train"][2] == TINY.rows * TINY.tokens
