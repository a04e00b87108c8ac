"""Compiled executables as files: written where a program is compiled, loaded where its devices are."""

import pathlib
import pickle
from collections.abc import Sequence

import jax
from jax.experimental import serialize_executable

from nextflow_jax.errors import UserError


def save_executable(path: pathlib.Path, compiled: jax.stages.Compiled) -> None:
    """Writes an executable with all that `load_executable` needs: the trees of arguments and results, its devices.

    Of a program for a CPU it must have been compiled with the compile cache off (`compile_cache.switched_off`), as
    `compile_program` does: what was itself read from a file cannot be loaded again.
    """
    executable, in_tree, out_tree = serialize_executable.serialize(compiled)
    devices = {device.id for leaf in jax.tree.leaves(compiled.input_shardings) for device in leaf.device_set}
    saved = {
        "jax": jax.__version__,
        "devices": sorted(devices),
        # Apart, so that all else can be read where this cannot.
        "program": pickle.dumps((executable, in_tree, out_tree)),
    }
    path.write_bytes(pickle.dumps(saved))


def load_executable(path: pathlib.Path, devices: Sequence[jax.Device] | None = None) -> jax.stages.Compiled:
    """The executable of a file, ready to be called with the arguments of the program that it was compiled from.

    Reading such a file can run code that is in it: load only files that you trust.

    Args:
      path: what `save_executable` or `python -m nextflow_jax.compile --save` wrote.
      devices: of the kind, number and ids that it was compiled for; all of this process when None.

    Raises:
      UserError: no such file, not one of these, another version of jax, or other devices.
    """
    try:
        saved = pickle.loads(path.read_bytes())
        version, ids, program = saved["jax"], saved["devices"], saved["program"]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a file of nextflow_jax.compile --save"
        ) from error
    except (pickle.UnpicklingError, EOFError, TypeError, KeyError):
        raise UserError(f"{path}: not an executable; give a file of nextflow_jax.compile --save") from None
    devices = list(jax.devices() if devices is None else devices)
    if version != jax.__version__:
        raise UserError(
            f"{path}: made with jax {version}, and this is {jax.__version__}; compile it again with this one"
        )
    if sorted(device.id for device in devices) != ids:
        raise UserError(
            f"{path}: for {len(ids)} devices, ids {ids[0]} to {ids[-1]}; given are {len(devices)}, ids "
            f"{[device.id for device in devices]}; compile for these, or give those"
        )
    executable, in_tree, out_tree = pickle.loads(program)
    return serialize_executable.deserialize_and_load(
        executable, in_tree, out_tree, backend=devices[0].client, execution_devices=devices
    )
