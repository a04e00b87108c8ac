import subprocess
import sys

import pytest

from nextflow_jax.data.ingest.__main__ import main
from nextflow_jax.errors import UserError, run_entry_point
from tests.data.ingest.conftest import write_pairs

EXPERIMENT = """
from nextflow_jax.config import to_config_dict
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig

def get_config(variant):
    return to_config_dict(IngestConfig(sources=(SourceConfig(paths=("none.jsonl",)),), workers=1))
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


def test_paths_are_given_on_the_command_line_and_counts_are_printed(experiment, tmp_path, capsys):
    path = write_pairs(tmp_path / "source", 20)
    (tmp_path / "source" / "images" / "3.png").write_bytes(b"")
    flags = [f"--config.sources.0.paths=('{path}',)", "--config.max_broken_share=0.1", "--out", str(tmp_path / "out")]
    main(["--config", experiment, *flags])
    out = capsys.readouterr().out
    assert "20 read, kept: train" in out
    assert "dropped: 1 of source: empty (has no bytes)" in out
    main(["--config", experiment, *flags])
    assert "was finished already" in capsys.readouterr().out


def test_a_machine_of_several_says_that_others_are_not_done(experiment, tmp_path, capsys):
    path = write_pairs(tmp_path / "source", 20)
    flags = [f"--config.sources.0.paths=('{path}',)", "--config.sources.0.unit_bytes=300"]
    main(["--config", experiment, *flags, "--out", str(tmp_path / "out"), "--processes", "2"])
    assert "parts of other machines are missing" in capsys.readouterr().out


def test_mistakes_are_one_line_and_exit_status_1(experiment, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_entry_point(main, ["--config", experiment, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: source path 'none.jsonl' names no file") and error.count("\n") == 1


def test_another_kind_of_experiment_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no ingest configuration"):
        main(["--config", "experiments/openmoji/quickstart.py:decoder", "--out", str(tmp_path / "out")])


def test_neither_the_command_nor_its_workers_import_jax():
    """Workers start in a fraction of a second, and no accelerator is taken."""
    program = (
        "import sys, nextflow_jax.data.ingest.__main__; print({'jax', 'grain', 'ml_collections'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
