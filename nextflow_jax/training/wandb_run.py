"""Records on their way to Weights & Biases, an optional package that is imported only where a run asks for it."""

import importlib
import json
import pathlib
import secrets
from collections.abc import Mapping

from nextflow_jax.errors import UserError
from nextflow_jax.training.workdir import CONFIG_FILE

ID_FILE = "wandb_id.txt"
"""The run's name over there, by which the next attempt goes on with the same curves."""


class WandbRun:
    """One run of a project; where it goes ($WANDB_MODE, $WANDB_ENTITY, ...) is as wandb's own documentation says.

    Args:
      workdir: the run's folder, with its config.json; wandb's own files go there too.
      project: name of the project.

    Raises:
      UserError: wandb does not begin, e.g. without a login.
    """

    def __init__(self, workdir: pathlib.Path, project: str) -> None:
        wandb = importlib.import_module("wandb")
        config = json.loads((workdir / CONFIG_FILE).read_text(encoding="utf-8"))
        identity = workdir / ID_FILE
        if not identity.exists():
            identity.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        name = config.get("name") or workdir.name
        try:
            self._run = wandb.init(
                project=project,
                id=identity.read_text(encoding="utf-8").strip(),
                name=name,
                dir=str(workdir),
                config=config,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(
                f"config.train.wandb = {project!r}: {error}; `wandb login`, or set WANDB_MODE=offline, or use ''"
            ) from error
        # Steps that a resumed run does again come a second time, which wandb's own step does not allow.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, float | int | None]) -> None:
        """Sends one record, without what is not finite; returns at once."""
        self._run.log({name: value for name, value in record.items() if value is not None})

    def close(self) -> None:
        """Waits until what was written has been sent."""
        self._run.finish()
