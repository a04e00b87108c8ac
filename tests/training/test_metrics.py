"""The log window, and metrics.jsonl across kills and resumes."""

import json

from nextflow_jax.training.metrics import METRICS_FILE, MetricsFiles, Window, read_metrics


def test_window_reduces_once_and_survives_json():
    window = Window()
    window.add({"loss": (6.0, 2.0), "rare": (0.0, 0.0)})
    window = Window(json.loads(json.dumps(window.totals)))
    window.add({"loss": (3.0, 4.0), "rare": (0.0, 0.0)})
    assert window.means() == {"loss": 1.5}
    window.clear()
    assert window.means() == {}


def test_reopening_drops_later_and_torn_lines(tmp_path):
    files = MetricsFiles(tmp_path, 0, tensorboard=False)
    for step in (10, 20, 30):
        files.write({"step": step, "loss": float(step)})
    files.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 40, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]
    files = MetricsFiles(tmp_path, 20, tensorboard=False)
    files.write({"step": 30, "loss": float("nan")})
    files.close()
    assert read_metrics(tmp_path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": None},
    ]


def test_tensorboard_gets_the_scalars(tmp_path):
    files = MetricsFiles(tmp_path, 0, tensorboard=True)
    files.write({"step": 1, "time": 0.0, "loss/text": 2.0})
    files.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/text" in events.read_bytes()


def test_a_folder_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []
