"""A bar on terminals, lines elsewhere."""

import io

import pytest

from nextflow_jax.training.progress import Progress

RECORD = {"loss": 1.5, "learning_rate": 1e-3, "tokens_per_s": 1234.0, "step_ms": 20.0, "mfu": 0.25}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_what_is_shown(stream):
    progress = Progress("demo", 0, 10, stream)
    progress.advance(5)
    progress.report(5, RECORD)
    progress.say("saved")
    progress.close()
    text = stream.getvalue()
    assert "loss 1.5000" in text and "1,234 tokens/s" in text and "MFU 25.0%" in text and "demo: saved" in text
    assert ("\r" in text) == isinstance(stream, Terminal)
