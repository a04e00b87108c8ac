"""Claiming an output folder: a state file says what is being made there, so that only the same run continues it."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from nextflow_jax.data.atomic_files import is_partial, write_atomically
from nextflow_jax.errors import UserError


def claim(
    out: pathlib.Path, state_file: str, made_from: Mapping[str, Any], finished: Mapping[str, Any] | None, what: str
) -> bool:
    """Makes `out` the folder of this run, or finds that it is.

    Args:
      out: the folder; made when it is not there.
      state_file: name of the file that an unfinished run leaves, with its `made_from`.
      made_from: all that the contents depend on, JSON-ready.
      finished: of what a finished folder was made; None: it is not finished.
      what: is made, in the plural, for messages.

    Returns:
      Whether `out` is finished already.

    Raises:
      UserError: it holds something else, or what was made from other inputs; names them. Or it cannot be written.
    """
    if finished is not None:
        _refuse_other_inputs(out, finished, made_from, what)
        return True
    state = out / state_file
    if state.is_file():
        try:
            there = json.loads(state.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{state} is not readable ({error}); delete --out {out} and start again") from error
        _refuse_other_inputs(out, there, made_from, what)
        return False
    text = json.dumps(made_from, indent=1, sort_keys=True)
    try:
        if out.exists() and any(not is_partial(path) and path != state for path in out.iterdir()):
            raise UserError(f"--out {out} holds files that are no {what}; choose another directory")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(state, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--out {out} is no folder that can be written ({error}); choose another directory") from error
    return False


def _refuse_other_inputs(out: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    there, here = dict(_leaves(there)), dict(_leaves(here))
    differences = [
        f"{name} was {there.get(name)}, is {here.get(name)}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise UserError(
            f"--out {out} holds {what} made from other inputs ({'; '.join(differences)}); choose another directory"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, tree
