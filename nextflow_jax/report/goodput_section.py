"""The section on where the wall clock of training runs went: a bar and a row of the table each."""

import pathlib
from collections.abc import Mapping

import matplotlib.pyplot as plt

from nextflow_jax.report import page
from nextflow_jax.report.curves import STYLE, to_svg
from nextflow_jax.training.goodput import PHASES, Account, account, read_entries

_COLORS = dict(zip(PHASES, ("C7", "C4", "C8", "C2", "C1", "C0", "C5", "C3", "C6"), strict=True))


def goodput(runs: Mapping[str, pathlib.Path]) -> str:
    """Bars and table of the runs (name -> folder) that kept account of their time; empty when none did."""
    accounts = {name: account(entries) for name, folder in runs.items() if (entries := read_entries(folder))}
    accounts = {name: total for name, total in accounts.items() if total.wall > 0}
    if not accounts:
        return ""
    shown = [phase for phase in PHASES if any(total.seconds[phase] > 0 for total in accounts.values())]
    rows = [
        [name, str(total.attempts), f"{total.wall:.1f}", f"{total.goodput:.1%}"]
        + [f"{total.seconds[phase]:.1f}" for phase in shown]
        for name, total in accounts.items()
    ]
    header = ["seconds", "attempts", "wall clock", "goodput", *shown]
    meanings = "; ".join(f"{phase}: {PHASES[phase]}" for phase in shown)
    return page.drawings([_bars(accounts, shown)], wide=True) + page.table(header, rows) + page.paragraph(meanings)


def restarts(run: pathlib.Path) -> list[int]:
    """The steps from which later attempts of a run went on."""
    first = {}
    for entry in read_entries(run):
        first.setdefault(entry.attempt, entry.first)
    return [step for attempt, step in first.items() if attempt > 1]


def _bars(accounts: Mapping[str, Account], shown: list[str]) -> str:
    with plt.rc_context({**STYLE, "svg.hashsalt": "goodput"}):
        figure, axes = plt.subplots(figsize=(10, 0.9 + 0.32 * len(accounts)), layout="constrained")
        left = [0.0] * len(accounts)
        for phase in shown:
            shares = [100 * total.seconds[phase] / total.wall for total in accounts.values()]
            axes.barh(list(accounts), shares, left=left, label=phase, color=_COLORS[phase], height=0.7)
            left = [a + b for a, b in zip(left, shares)]
        axes.set(xlabel="% of the wall clock", xlim=(0, 100))
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(ncols=len(shown), loc="outside upper center")
        return to_svg(figure)
