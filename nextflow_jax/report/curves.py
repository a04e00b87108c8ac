"""Training curves as SVG inside the page. Text and axes take the page's colour, so they suit light and dark."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""Name of a line -> (steps, values)."""

_INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "grid.alpha": 0.2,
}


def curves(
    title: str,
    series: Series,
    *,
    log: bool = False,
    value_name: str = "loss",
    marks: Mapping[str, Sequence[int]] | None = None,
) -> str:
    """An <svg> with one line a series over training steps.

    Args:
      title: also makes the element ids of this drawing unlike those of the others on the page.
      series: lines, drawn in order; positive values only when `log`.
      log: a logarithmic value axis.
      value_name: label of the value axis.
      marks: steps by name of a line where a dotted line of its colour stands.
    """
    with plt.rc_context({**STYLE, "svg.hashsalt": title}):
        figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
        colors = plt.get_cmap("tab10" if len(series) <= 10 else "tab20")
        for i, (name, (steps, values)) in enumerate(series.items()):
            axes.plot(steps, values, label=name, linewidth=1.4, color=colors(i))
            for step in (marks or {}).get(name, ()):
                axes.axvline(step, color=colors(i), linewidth=1, linestyle=":")
        axes.set(title=title, xlabel="step", ylabel=value_name)
        if log:
            axes.set_yscale("log", subs=(2, 5))
            axes.yaxis.set_major_formatter(_plain_number)
            axes.yaxis.set_minor_formatter(_plain_number)
        axes.grid(True, which="major")
        if len(series) > 1:
            many = len(series) > 8
            axes.legend(ncols=3 if many else 1, fontsize="x-small" if many else None)
        return to_svg(figure)


def to_svg(figure: plt.Figure) -> str:
    """The drawing as an <svg> for the page; closes the figure. Call it within the style's context."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Names of groups repeat from drawing to drawing; what is referred to has ids of its own, made with the title.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _plain_number(value: float, _: int | None) -> str:
    return f"{value:g}"
