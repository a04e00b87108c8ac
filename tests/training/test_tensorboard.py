"""Events that other programs read, and a disk that is full."""

import pytest
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event

from nextflow_jax.training.tensorboard import BoardFile


def read(path):
    """Events of a file: each 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_what_is_in_a_file(tmp_path):
    board = BoardFile(tmp_path, step=4)
    board.write(6, {"loss": 2.0, "loss/text": 1.5})
    board.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    first, start, *scalars = read(path)
    assert "tfevents" in path.name and first.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 5
    found = [(event.step, value.tag, value.simple_value) for event in scalars for value in event.summary.value]
    assert found == [(6, "loss", 2.0), (6, "loss/text", 1.5)]


def test_a_full_disk_is_an_error_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "open_file", lambda _: open("/dev/full", "wb"))  # noqa: SIM115  (the file closes it)
    board = BoardFile(tmp_path, step=0)
    with pytest.raises(OSError, match="No space left on device"):
        for step in range(1000):
            board.write(step, {"loss": 1.0})
