"""`python -m nextflow_jax.compile`: an experiment compiled for TPUs that are not there: does it fit, how fast is it?"""

import argparse
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from nextflow_jax import command
from nextflow_jax.aot.advice import Situation, advise
from nextflow_jax.aot.compiling import CompiledProgram, compile_program
from nextflow_jax.aot.programs import PlannedProgram, leaner_policies, training_step
from nextflow_jax.aot.result import describe, read_program
from nextflow_jax.aot.saved import save_executable
from nextflow_jax.aot.sweep import sweep
from nextflow_jax.aot.topology import Topology, open_topology
from nextflow_jax.aot.use import extraction_step, sampling_step
from nextflow_jax.config import load_experiment
from nextflow_jax.errors import DoesNotFit, UserError, run_entry_point
from nextflow_jax.folders import probe, writing
from nextflow_jax.sharding_table import table_of
from nextflow_jax.training.experiment import DecoderExperiment, build_experiment
from nextflow_jax.training.program import SHARDING_FILE
from nextflow_jax.training.settings import Experiment

DESCRIPTION = """\
Compiles what an experiment would run on TPUs, on any machine with libtpu and without a TPU, and prints one JSON object:
chips, parameters, tokens and model FLOPs of a step, bytes of a device's memory (arguments, temporaries, peak, limit,
headroom), collectives by kind with count and bytes, the roofline's estimate of the step time and the MFU that bounds,
seconds of tracing and lowering, and of compiling, whether it fits. Takes minutes for large models. Nothing is run and
no data is read: sizes that shards decide must be set in the experiment, e.g. --config.model.vocabulary.text_size=N.

--program train is the training step of nextflow_jax.train; extract a device call of nextflow_jax.extract; sample the
last scale of a picture, of config.evaluation.batch_size requests, on config.mesh.tensor chips.

--topology v5p:4x4x8 names generation and chips along each dimension of a slice; cpu:8 simulates eight devices of no
real kind. --sweep compiles every remat policy of a training step on several meshes, one after another, a line of JSON
each and a last line with the ranking.

--dump writes the program as text: NAME.stablehlo.txt before it is compiled, NAME.hlo.txt after, unless the compiler
refused it; of train also sharding.txt: of each array of the state name, shape, dtype, logical axes, partition, bytes on
a device. --save writes the executable; nextflow_jax.aot.saved.load_executable(pathlib.Path(FILE)) loads it in one call,
on the devices it is for (tried with simulated ones; no TPU has loaded one)."""

PROGRAMS = ("train", "extract", "sample")


def main(arguments: Sequence[str]) -> None:
    """Compiles and prints; see --help.

    Raises:
      DoesNotFit: the program needs more memory than a device has; what to change.
      UserError: what --dump or --save names cannot be written; or the experiment has no such program.
    """
    parser = _parser()
    options, overrides = command.parse(parser, arguments)
    if options.sweep and (options.program != "train" or options.dump or options.save):
        parser.error("--sweep is for --program train, without --dump and --save: compile the best one again for these")
    # Programs are for the topology's devices; those of this machine, if any, stay untouched.
    jax.config.update("jax_platforms", "cpu")
    experiment = build_experiment(load_experiment(options.config, overrides))
    topology = open_topology(options.topology, options.slices)
    if options.sweep:
        sweep(experiment, topology, list(arguments), options.sweep_seconds, _print_line)
        return
    dump, save = options.dump, options.save
    _require_writable(dump, save)
    begin = time.perf_counter()
    program = plan(options.program, experiment, options.tokenizer, topology)
    seconds = time.perf_counter() - begin
    if dump:
        _write_plan(dump, program)
    compiled = compile_program(program, topology, options.effort)
    result = describe(program, compiled, topology, read_program(compiled), seconds)
    _print_line({"command": shlex.join(["python", "-m", "nextflow_jax.compile", *arguments]), **result})
    if compiled.compiled is not None:
        _write_compiled(dump, save, program.name, compiled.compiled)
    if not result["fits"]:
        raise DoesNotFit(_what_to_change(experiment, program, compiled, topology))


def plan(name: str, experiment: Experiment, tokenizer: str, topology: Topology) -> PlannedProgram:
    """The program of this name, lowered for the topology.

    Raises:
      UserError: the experiment has no such program, or it cannot be made; says why.
    """
    if name == "train":
        return training_step(experiment, topology)
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(
            f"--program {name}: config.kind = {experiment.kind!r}; only a decoder experiment says what to {name}"
        )
    build: dict[str, Callable[..., PlannedProgram]] = {"extract": extraction_step, "sample": sampling_step}
    return build[name](experiment, tokenizer, topology)


def _what_to_change(
    experiment: Experiment, program: PlannedProgram, compiled: CompiledProgram, topology: Topology
) -> str:
    memory, limit = compiled.memory, topology.hbm_limit
    needed = f"{program.name} needs {memory.peak / 2**30:.2f} GiB of a device's {limit / 2**30:.2f}"
    if program.name == "train":
        situation = Situation(
            memory,
            limit,
            program.mesh,
            leaner_policies(experiment),
            experiment.train.batch_size,
            experiment.train.accumulate,
            program.gradient_bytes,
        )
        changes = advise(situation)
    else:
        changes = [
            f"a smaller --config.{name} than {value}" for name, value in program.settings.items() if "batch" in name
        ]
        changes += ["--config.mesh.tensor, chips that share the weights"] if program.name == "sample" else []
    return f"{needed}; try {', or '.join(changes) or 'more chips, or a smaller model'}"


def _require_writable(dump: pathlib.Path | None, save: pathlib.Path | None) -> None:
    """Refuses, before minutes of compiling, what cannot be written after them."""
    if dump:
        with writing("--dump", dump):
            probe(dump)
    if save and save.is_dir():
        raise UserError(f"--save {save}: is a folder; name a file")
    if save:
        with writing("--save", save.parent):
            probe(save.parent)


def _write_plan(folder: pathlib.Path, program: PlannedProgram) -> None:
    """What is known before compiling: one looks at these when the compiler refuses the program."""
    with writing("--dump", folder):
        (folder / f"{program.name}.stablehlo.txt").write_text(program.lowered.as_text(), encoding="utf-8")
        if program.state:
            (folder / SHARDING_FILE).write_text(table_of(program.state) + "\n", encoding="utf-8")


def _write_compiled(
    dump: pathlib.Path | None, save: pathlib.Path | None, name: str, compiled: jax.stages.Compiled
) -> None:
    if dump:
        with writing("--dump", dump):
            (dump / f"{name}.hlo.txt").write_text(compiled.as_text(), encoding="utf-8")
    if save:
        with writing("--save", save):
            save_executable(save, compiled)


def _print_line(value: dict[str, Any]) -> None:
    print(json.dumps(value), file=sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = command.command_parser(
        "compile",
        DESCRIPTION,
        example="--config experiments/nextflow/decoder.py:pretrain_256 --topology v5p:4x4x4",
        statuses="0 fits, 1 bad input or configuration, 2 usage, 3 does not fit (standard error: what to change)",
    )
    command.add_config_flag(parser)
    parser.add_argument("--topology", required=True, metavar="NAME", help="e.g. v5p:4x4x4, v6e:16x16, cpu:8")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="of that shape (%(default)s)")
    parser.add_argument("--program", choices=PROGRAMS, default="train", help="what to compile (%(default)s)")
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="FILE[:VARIANT]|DIR",
        help="extract, sample: the vision tokenizer: its experiment, a run's folder, or a bundle",
    )
    folder = command.folder
    parser.add_argument("--dump", metavar="DIR", type=folder, help="write there the program and where the state lies")
    parser.add_argument("--save", metavar="FILE", type=folder, help="write the compiled executable")
    parser.add_argument(
        "--effort",
        type=float,
        default=0.0,
        help="of the TPU compiler: 0 as training compiles; -1 is several times quicker, its figures differ a little",
    )
    parser.add_argument("--sweep", action="store_true", help="rank remat policies and meshes (train)")
    parser.add_argument("--sweep_seconds", type=int, default=900, metavar="S", help="time for each (%(default)s)")
    return parser


if __name__ == "__main__":
    run_entry_point(main)
