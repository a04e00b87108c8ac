"""`python -m nextflow_jax.train`: trains what an experiment describes, in a folder, from where it stands."""

import contextlib
from collections.abc import Sequence

import jax

from nextflow_jax import command, compile_cache
from nextflow_jax.config import from_config_dict, load_experiment
from nextflow_jax.distributed import DistributedConfig, joined
from nextflow_jax.errors import run_entry_point
from nextflow_jax.training.checkpoint import checkpoint_steps
from nextflow_jax.training.experiment import prepare_experiment
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.loop import train
from nextflow_jax.training.profile import ignore_signal
from nextflow_jax.training.tasks import make_task
from nextflow_jax.training.workdir import prepare_workdir

DESCRIPTION = """\
Trains what the configuration describes (config.kind: contrastive, tokenizer or decoder) in a folder: config.json,
metrics.jsonl, tensorboard/, checkpoints/. Running the same command again continues from the newest checkpoint;
SIGTERM and Ctrl-C save one first. $NEXTFLOW_JAX_CACHE is where compiled programs are kept (default: the user's cache
folder; empty: nowhere)."""

STATUSES = f"""{command.STATUSES} (saved),
75 try again (another process is lost, a step hangs, the disk is full, the folder is in use). Stopped by SIGTERM: 0,
with a checkpoint of the step at hand"""


def main(arguments: Sequence[str]) -> None:
    """Checks everything, then trains; see --help."""
    ignore_signal()
    parser = command.command_parser(
        "train",
        DESCRIPTION,
        example="--config experiments/openmoji/quickstart.py:contrastive --workdir runs/quickstart/contrastive",
        statuses=STATUSES,
    )
    command.add_config_flag(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder; made when it is not there")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this job first (TPU pods and Slurm are recognised; elsewhere set "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as python -m nextflow_jax.supervise does)",
    )
    options, overrides = command.parse(parser, arguments)
    config = load_experiment(options.config, overrides)
    workdir = prepare_workdir(options.workdir)
    ledger = Ledger(workdir)
    membership = contextlib.nullcontext()
    if options.distributed:
        membership = joined(from_config_dict(DistributedConfig, config.distributed, "config.distributed"))
    with membership:
        compile_cache.enable()
        experiment = prepare_experiment(config, jax.device_count())
        steps = checkpoint_steps(workdir)
        if steps and steps[-1] >= experiment.train.steps:
            print(f"{workdir} is already complete: step {steps[-1]} of {experiment.train.steps}")
            return
        train(experiment, make_task(experiment), workdir, ledger=ledger)


if __name__ == "__main__":
    run_entry_point(main)
