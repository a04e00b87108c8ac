"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

import io
import sys
from collections.abc import Mapping

import jax
import tqdm


class Progress:
    """Shows the steps of a run on `stream` (stderr by default); silent on all processes but the first."""

    def __init__(self, name: str, start: int, steps: int, stream: io.TextIOBase | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._name, self._steps = name, steps
        self._shown = start
        self._silent = jax.process_index() != 0
        self._bar = None
        if not self._silent and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=steps, initial=start, desc=name, unit="step", file=self._stream, dynamic_ncols=True
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._shown)
        self._shown = step

    def report(self, step: int, record: Mapping[str, float | int]) -> None:
        """Shows a log record: beside the bar, or as a line."""
        if self._silent:
            return
        parts = [f"loss {record['loss']:.4f}"] if "loss" in record else []
        parts += [f"lr {record['learning_rate']:.2e}"] if "learning_rate" in record else []
        parts += [f"{record['tokens_per_s']:,.0f} tokens/s", f"{record['step_ms']:.0f} ms/step"]
        parts += [f"MFU {record['mfu']:.1%}"] if "mfu" in record else []
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))
            return
        left = _duration((self._steps - step) * record["step_ms"] / 1000)
        self.say(f"step {step}/{self._steps}: {', '.join(parts)}, {left} left")

    def say(self, message: str) -> None:
        """Prints one line, above the bar if there is one."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.write(f"{self._name}: {message}", file=self._stream)
        else:
            print(f"{self._name}: {message}", file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
