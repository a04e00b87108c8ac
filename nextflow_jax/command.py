"""What command lines share: the --config and --config.a.b=V flags, and help texts that say what a command does.

parser = command_parser("train", "Trains what the configuration describes.", example="--config X.py --workdir DIR")
add_config_flag(parser)
parser.add_argument("--workdir", ...)
options, overrides = parse(parser, arguments)
config = load_experiment(options.config, overrides)
"""

import argparse
import pathlib
from collections.abc import Sequence

from nextflow_jax.folders import URL_FIX, url_rule

OVERRIDE_PREFIX = "--config."


STATUSES = "0 done, 1 bad input or configuration, 2 usage, 130 interrupted by Ctrl-C"


def command_parser(name: str, description: str, example: str, statuses: str = STATUSES) -> argparse.ArgumentParser:
    """The parser of `python -m nextflow_jax.<name>`.

    Args:
      name: of the command's module.
      description: what it does and writes, in a sentence or two.
      example: arguments of a typical call.
      statuses: what its exit status means.
    """
    program = f"python -m nextflow_jax.{name}"
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"example: {program} {example}\n\nexit status: {statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --config; `parse` then also accepts --config.a.b=V."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="experiment file, e.g. experiments/openmoji/quickstart.py:decoder; any of its values may be changed with "
        "--config.a.b=VALUE (a Python literal; a bare word is a string), e.g. --config.train.steps=100",
    )


def folder(value: str) -> pathlib.Path:
    """The `type` of a flag that names a folder of this machine, or a file in one; usage errors are its only ones."""
    rule = url_rule(value)
    if rule:
        raise argparse.ArgumentTypeError(f"{value}: {rule}; {URL_FIX}")
    return pathlib.Path(value)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line; usage errors print the usage and exit with status 2.

    Returns:
      (options, overrides): the flags, and the `a.b=VALUE` parts of --config.a.b=VALUE for `config.load_experiment`.
    """
    options, rest = parser.parse_known_args(list(arguments))
    overrides = [argument.removeprefix(OVERRIDE_PREFIX) for argument in rest if argument.startswith(OVERRIDE_PREFIX)]
    unknown = [argument for argument in rest if not argument.startswith(OVERRIDE_PREFIX)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)} (configuration values: --config.a.b=VALUE)")
    return options, overrides
