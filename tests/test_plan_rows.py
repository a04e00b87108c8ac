"""The plan command on the tiny shards of the training tests."""

import dataclasses
import json

import numpy as np
import pytest

from nextflow_jax import plan_rows
from nextflow_jax.data.pipeline import make_plan
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.training.tasks import make_task
from tests.training import small

EXPERIMENT = """
from nextflow_jax.config import to_config_dict
from tests.training import small


def get_config(variant):
    return to_config_dict(small.contrastive() if variant else small.decoder({shards!r}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    small.write_shards(folder / "shards")
    (folder / "experiment.py").write_text(EXPERIMENT.format(shards=str(folder / "shards")))
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """The plan of the training that the experiment describes."""
    experiment = small.decoder(folder / "shards").with_input_sizes()
    shards = open_shards(experiment.pipeline.shards)
    size, cost = experiment.train.batch_size, row_cost(experiment.model)
    return make_plan(experiment.pipeline, shards, "train", experiment.seed, size, cost), shards.index("train")


def test_prints_the_documents_of_every_row(folder, expected, capsys):
    plan_rows.main(["--config", str(folder / "experiment.py"), "--batches", "1:3"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows, (planned, index) = iter(lines), expected
    for n in (1, 2):
        for number, row in enumerate(planned.batch(n)):
            line = next(rows)
            assert (line["batch"], line["row"]) == (n, number)
            assert line["documents"] == [index.key(record) for record in row.records.tolist()]
            assert line["dropped"] == [index.key(record) for record in row.records[row.dropped].tolist()]
    assert next(rows, None) is None


def test_writes_the_file_that_training_takes(folder, expected, capsys):
    plan_rows.main(
        ["--config", str(folder / "experiment.py"), "--batches", "0:4", "--out", str(folder / "new" / "p.npz")]
    )
    printed = capsys.readouterr().out
    assert "global batches 0 to 3" in printed and "padding_share" in printed
    experiment = small.decoder(folder / "shards").with_input_sizes()
    pipeline = dataclasses.replace(experiment.pipeline, plan_file=str(folder / "new" / "p.npz"))
    batch = next(make_task(dataclasses.replace(experiment, pipeline=pipeline)).batches(2, 0, 1))
    documents = [len(row.records) for row in expected[0].batch(2)]
    np.testing.assert_array_equal(batch["document"].max(axis=1), documents)


@pytest.mark.parametrize("batches", ["4", "3:3", "a:b", "-1:2"])
def test_ranges_that_are_none_are_refused(folder, batches):
    with pytest.raises(UserError, match="--batches"):
        plan_rows.main(["--config", str(folder / "experiment.py"), f"--batches={batches}"])


def test_other_kinds_and_missing_shards_are_refused(folder):
    with pytest.raises(UserError, match="only a decoder"):
        plan_rows.main(["--config", f"{folder / 'experiment.py'}:contrastive", "--batches", "0:1"])
    with pytest.raises(UserError, match="pipeline.shards"):
        plan_rows.main(
            ["--config", str(folder / "experiment.py"), "--batches", "0:1", f"--config.pipeline.shards={folder}/none"]
        )
