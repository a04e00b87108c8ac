"""Tries remat policies and meshes one after another, each in a process of its own, and ranks what fits."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nextflow_jax.aot.programs import remat_of, remat_policies
from nextflow_jax.aot.topology import Topology
from nextflow_jax.errors import DoesNotFit, UserError
from nextflow_jax.training.settings import Experiment

FREE_SHARE = 0.1
"""Of the memory: what fits with less room is ranked after everything that has it."""


def sweep(
    experiment: Experiment,
    topology: Topology,
    arguments: Sequence[str],
    seconds: int,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Compiles every candidate and shows a result each, then {"ranking": [...]}, the best first.

    Args:
      experiment: what is compiled.
      topology: where.
      arguments: the command line; candidates are told by --config flags behind it.
      seconds: limit for each.
      show: gets each result as soon as it is there.

    Raises:
      DoesNotFit: some could be compiled, and none of them fits.
      UserError: none could be compiled.
    """
    plain = [argument for argument in arguments if argument != "--sweep"]
    results = []
    for changes in candidates(experiment, len(topology.devices)):
        result = _compile(plain, changes, seconds)
        results.append(result)
        show(result)
    show({"ranking": ranking(results)})
    _require_one(results)


def _require_one(results: Sequence[Mapping[str, Any]]) -> None:
    """Raises what `sweep` does unless one fits."""
    compiled = [result for result in results if result["fits"] is not None]
    if not results:
        raise UserError(
            "--sweep: no mesh whose blocks of rows divide config.train.batch_size / accumulate; change one of them"
        )
    if not compiled:
        raise UserError(
            f"--sweep: none of {len(results)} candidates could be compiled; the first: {results[0]['error']}"
        )
    if not any(result["fits"] for result in compiled):
        least = min(compiled, key=lambda result: result["hbm"]["peak"])
        changes = " ".join(f"--config.{name}={value}" for name, value in least["changes"].items())
        peak, limit = (least["hbm"][name] / 2**30 for name in ("peak", "limit"))
        raise DoesNotFit(
            f"--sweep: none of {len(compiled)} compiled candidates fits; the least needs {peak:.2f} GiB of a device's "
            f"{limit:.2f}: {changes}; without --sweep, these flags say what else to change"
        )


def candidates(experiment: Experiment, devices: int) -> Iterator[dict[str, Any]]:
    """Changes of the configuration: every remat policy on every mesh of `meshes`."""
    policies, fields = remat_policies(experiment.kind), remat_of(experiment)
    for mesh, policy in itertools.product(meshes(experiment, devices), policies):
        yield {**{f"mesh.{axis}": size for axis, size in mesh.items()}, **dict.fromkeys(fields, policy)}


def meshes(experiment: Experiment, devices: int) -> list[dict[str, int]]:
    """The experiment's own mesh, and those that move a factor of 4 or 16 from fsdp to data, or 2 to context.

    Those whose batch blocks do not divide the batch are left out.
    """
    own = experiment.mesh.resolve(devices)
    found = [own]
    for factor, axis in ((4, "data"), (16, "data"), (2, "context")):
        if own["fsdp"] % factor == 0 and own["fsdp"] > factor:
            found.append({**own, "fsdp": own["fsdp"] // factor, axis: own[axis] * factor})
    rows = experiment.train.batch_size // experiment.train.accumulate
    return [mesh for mesh in found if rows % (mesh["slice"] * mesh["data"] * mesh["fsdp"]) == 0]


def ranking(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What fits, the shortest estimated step first; with a tenth of the memory free before those with less."""

    def order(result: Mapping[str, Any]) -> tuple[bool, float, float]:
        hbm = result["hbm"]
        tight = hbm["headroom"] < FREE_SHARE * hbm["limit"]
        return tight, result["step_seconds_estimate"], result["roofline"]["seconds_without_overlap"]

    fitting = sorted((result for result in results if result.get("fits")), key=order)
    return [
        {
            "changes": result["changes"],
            "step_seconds_estimate": result["step_seconds_estimate"],
            "mfu_bound": result["mfu_bound"],
            "free": round(result["hbm"]["headroom"] / result["hbm"]["limit"], 3),
        }
        for result in fitting
    ]


def _compile(arguments: Sequence[str], changes: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    command = [sys.executable, "-m", "nextflow_jax.compile", *arguments, *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"changes": dict(changes), "fits": None, "error": f"not compiled within {seconds} s"}
    if done.stdout.strip():
        return {"changes": dict(changes), **json.loads(done.stdout)}
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")] or done.stderr.splitlines()[-1:]
    return {"changes": dict(changes), "fits": None, "error": " ".join(said)}
