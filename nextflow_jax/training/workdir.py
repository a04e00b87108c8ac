"""A run's folder: that it can be written, config.json, and whether a checkpoint in it may be continued."""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from nextflow_jax.config import from_config_dict, to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.training.settings import Experiment

CONFIG_FILE = "config.json"
ABSENT = "absent"
_PROBE_BYTES = 4096


def prepare_workdir(workdir: str | os.PathLike) -> pathlib.Path:
    """Creates the folder and checks that files can be written in it.

    Raises:
      UserError: it cannot be created or written.
    """
    folder = pathlib.Path(workdir).absolute()
    probe = folder / f".write_test_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            # An empty file can be made on a full disk.
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return folder


def require_space(workdir: pathlib.Path, abstract: Any) -> None:
    """Raises a UserError when a checkpoint of a state of these shapes would not fit on the disk of the folder."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"--workdir {workdir}: {free / 2**30:.2f} GiB are free, and a checkpoint takes up to {needed / 2**30:.2f}; "
            "make room, or choose another folder"
        )


def save_config(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Writes the resolved configuration to config.json, atomically, from the first process."""
    if jax.process_index() != 0:
        return
    temporary = workdir / f"{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(to_plain_dict(experiment), indent=2) + "\n", encoding="utf-8")
    temporary.replace(workdir / CONFIG_FILE)


def check_resume(experiment: Experiment, fingerprints: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Refuses to continue a checkpoint whose arrays or data mean something else under this configuration.

    Args:
      experiment: the configuration now; its FIXED and FREE say which fields must not have changed.
      fingerprints: `Task.describe()` now.
      meta: the checkpoint's meta.

    Raises:
      UserError: lists every difference: field, value in the checkpoint, value now.
    """
    now, then = to_plain_dict(experiment), meta["config"]
    if then["kind"] == experiment.kind:
        # An earlier version did what the defaults of fields say that it did not know.
        then = to_plain_dict(from_config_dict(type(experiment), then, "the checkpoint's config", fill=True))
    differences = []
    for field in experiment.FIXED:
        for name, old, new in _differences(f"config.{field}", then.get(field, ABSENT), now[field]):
            if name.removeprefix("config.") not in experiment.FREE:
                differences.append(f"{name} was {old!r} and is {new!r}")
    for name, old, new in _differences("fingerprint", meta["fingerprints"], dict(fingerprints)):
        differences.append(f"{name} was {old!r} and is {new!r}")
    if differences:
        raise UserError(
            f"the checkpoint of step {meta['step']} does not fit this configuration: {'; '.join(differences)}; "
            "restore these values, or start in another --workdir"
        )


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key, ABSENT), new.get(key, ABSENT))
    elif old != new:
        yield name, old, new
