"""`python -m nextflow_jax.plan_rows`: which documents a decoder's training reads in which batch, known beforehand."""

import json
from collections.abc import Callable, Sequence

from nextflow_jax import command
from nextflow_jax.config import load_experiment, preflight
from nextflow_jax.data.pipeline import make_plan
from nextflow_jax.data.plan import Plan
from nextflow_jax.data.plan_file import plan_settings, write_plan
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.training.experiment import DecoderExperiment, build_experiment
from nextflow_jax.training.row_cost import row_cost

DESCRIPTION = """\
Plans global batches A to B-1 of a decoder's training: which documents of its shards lie in which row. Prints a JSON
object a row, documents by their keys; those whose condition is dropped or that are turned around are listed again.
With --out, writes a file instead, from which training reads these rows (--config.pipeline.plan_file=FILE), and prints
what mixture and padding they realise. The rows are the same with and without the file."""


def main(arguments: Sequence[str]) -> None:
    """Plans some batches; see --help."""
    parser = command.command_parser(
        "plan_rows",
        DESCRIPTION,
        example="--config experiments/openmoji/quickstart.py:decoder --batches 0:100 --out runs/quickstart/plan.npz",
    )
    command.add_config_flag(parser)
    parser.add_argument("--batches", required=True, metavar="A:B", help="numbers of global batches, from 0")
    parser.add_argument("--out", type=command.folder, metavar="FILE", help="an .npz file for config.pipeline.plan_file")
    options, overrides = command.parse(parser, arguments)
    batches = _batches(options.batches)
    experiment = _experiment(options.config, overrides)
    config, shards = experiment.pipeline, open_shards(experiment.pipeline.shards, experiment.pipeline.verify)
    chosen = ("train", experiment.seed, experiment.train.batch_size, row_cost(experiment.model))
    plan = make_plan(config, shards, *chosen)
    if options.out is None:
        _print_rows(plan, batches, shards.index("train").key)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_plan(options.out, plan, batches.start, batches.stop, plan_settings(config, shards, *chosen))
    print(f"{options.out}: rows of global batches {batches.start} to {batches.stop - 1}")
    for name, value in plan.realised(batches.start, batches.stop).items():
        print(f"  {name} {value:.4g}")


def _print_rows(plan: Plan, batches: range, key_of: Callable[[int], str]) -> None:
    for n in batches:
        for number, row in enumerate(plan.batch(n)):
            keys = [key_of(record) for record in row.records.tolist()]
            line = {"batch": n, "row": number, "documents": keys}
            for name in ("dropped", "inverted"):
                line[name] = [key for key, chosen in zip(keys, getattr(row, name).tolist()) if chosen]
            print(json.dumps(line, ensure_ascii=False))


def _batches(text: str) -> range:
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UserError(f"--batches {text}: must be two numbers A:B with A < B, e.g. 0:100 for the first hundred")
    return range(int(start), int(stop))


def _experiment(spec: str, overrides: Sequence[str]) -> DecoderExperiment:
    experiment = build_experiment(load_experiment(spec, overrides))
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(f"config.kind = {experiment.kind!r}: only a decoder reads documents that are planned")
    if missing := list(experiment.input_faults()):
        preflight(experiment.with_placeholder_sizes(), extra=missing)
    complete = experiment.with_input_sizes()
    preflight(complete)
    return complete


if __name__ == "__main__":
    run_entry_point(main)
