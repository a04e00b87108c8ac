"""A run's folder: that it can be written, config.json, and whether a checkpoint in it may be continued."""

import errno
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from nextflow_jax.config import from_config_dict, to_plain_dict
from nextflow_jax.errors import TransientError, UserError
from nextflow_jax.folders import probe, require_folder
from nextflow_jax.training.checkpoint import checkpoint_steps
from nextflow_jax.training.checkpoint_files import size_text
from nextflow_jax.training.settings import Experiment

CONFIG_FILE = "config.json"
ABSENT = "absent"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of somebody's share of it, that is full."""
DISK_ERRORS = (*FULL, errno.EROFS, errno.ESTALE)
"""Those of a disk under a run that wrote to it before."""


def prepare_workdir(workdir: str | os.PathLike) -> pathlib.Path:
    """Creates the folder and checks that files can be written in it.

    Raises:
      UserError: it is a URL, or cannot be created or written.
      TransientError: the disk is full, or away, under a run that has a checkpoint.
    """
    require_folder("--workdir", workdir)
    folder = pathlib.Path(workdir).absolute()
    try:
        probe(folder)
    except OSError as error:
        if error.errno in DISK_ERRORS and checkpoint_steps(folder):
            raise TransientError(
                f"--workdir {workdir}: {error.strerror}; the last checkpoint stays; make room, and start again"
            ) from error
        raise UserError(f"--workdir {workdir}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


def require_space(workdir: pathlib.Path, abstract: Any, resumed: bool = False) -> None:
    """Checks that a checkpoint of a state of these shapes would fit on the disk of the folder.

    Raises:
      UserError: it would not.
      TransientError: likewise, and the run has a checkpoint: it goes on once there is room.
    """
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    free = shutil.disk_usage(workdir).free
    if free < needed:
        problem = f"--workdir {workdir}: {size_text(free)} are free, and a checkpoint takes up to {size_text(needed)}"
        if resumed:
            raise TransientError(f"{problem}; the last checkpoint stays; make room, and start again")
        raise UserError(f"{problem}; make room, or choose another folder")


def save_config(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Writes the resolved configuration to config.json, atomically, from the first process."""
    if jax.process_index() != 0:
        return
    temporary = workdir / f"{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(to_plain_dict(experiment), indent=2) + "\n", encoding="utf-8")
    temporary.replace(workdir / CONFIG_FILE)


def check_resume(experiment: Experiment, fingerprints: Mapping[str, str], meta: Mapping[str, Any]) -> list[str]:
    """Refuses to continue a checkpoint whose arrays or data mean something else under this configuration.

    Args:
      experiment: the configuration now; its FIXED and FREE say which fields must not have changed.
      fingerprints: `Task.describe()` now.
      meta: the checkpoint's meta.

    Returns:
      Every difference that is allowed, a clause each.

    Raises:
      UserError: lists every difference: field, value in the checkpoint, value now.
    """
    now, then = to_plain_dict(experiment), meta["config"]
    if then["kind"] == experiment.kind:
        # An earlier version did what the defaults of fields say that it did not know.
        then = to_plain_dict(from_config_dict(type(experiment), then, "the checkpoint's config", fill=True))
    differences, allowed = [], []
    for name, old, new in _differences("config", then, now):
        fixed = _is_within(name, experiment.FIXED) and not _is_within(name, experiment.FREE)
        (differences if fixed else allowed).append(f"{name} was {old!r} and is {new!r}")
    for name, old, new in _differences("fingerprint", meta["fingerprints"], dict(fingerprints)):
        differences.append(f"{name} was {old!r} and is {new!r}")
    if differences:
        raise UserError(
            f"the checkpoint of step {meta['step']} does not fit this configuration: {'; '.join(differences)}; "
            "restore these values, or start in another --workdir"
        )
    return allowed


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key, ABSENT), new.get(key, ABSENT))
    elif old != new:
        yield name, old, new


def _is_within(name: str, fields: Sequence[str]) -> bool:
    """Whether "config.a.b" is one of these fields ("a.b") or inside one that is a group."""
    return any(f"{name}.".startswith(f"config.{field}.") for field in fields)
