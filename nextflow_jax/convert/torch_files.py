"""torch's checkpoint files, zip and legacy, read without torch and without running anything that they name.

Both formats are pickles that refer to raw storages. The unpickler here knows tensors, parameters and plain containers;
any other global a file names is refused by its name before it could be called. Formats: `torch/serialization.py`.
"""

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nextflow_jax.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
    "float64": ("Double", np.float64),
    "float32": ("Float", np.float32),
    "float16": ("Half", np.float16),
    "bfloat16": ("BFloat16", jnp.bfloat16),
    "int64": ("Long", np.int64),
    "int32": ("Int", np.int32),
    "int16": ("Short", np.int16),
    "int8": ("Char", np.int8),
    "uint8": ("Byte", np.uint8),
    "bool": ("Bool", np.bool_),
    "complex64": ("ComplexFloat", np.complex64),
    "complex128": ("ComplexDouble", np.complex128),
}
"""torch's names of element types: of the dtype, and of the storage class before "Storage"."""


@dataclasses.dataclass(slots=True)
class Storage:
    """Elements in a row that tensors are views of; `load` gives the bytes when they are first needed."""

    dtype: str
    """A key of DTYPES."""
    elements: int
    load: Callable[[], bytes] | None = None
    _array: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """All elements; read once, however many tensors share them."""
        if self._array is None:
            data, dtype = self.load(), np.dtype(DTYPES[self.dtype][1])
            if len(data) < self.elements * dtype.itemsize:
                raise ValueError(f"a storage of {self.elements} {self.dtype} has only {len(data)} bytes")
            self._array = np.frombuffer(data, dtype, self.elements)
        return self._array


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage as the file describes it; `array` makes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    dtype: str
    """A key of DTYPES."""

    def array(self) -> np.ndarray:
        """The elements, read-only, strided as in the file and not copied.

        Raises:
          ValueError: the view reaches outside its storage.
        """
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides), default=0) < 0:
            raise ValueError(f"shape {self.shape}, strides {self.strides}, offset {self.offset} make no tensor")
        elements = self.storage.array().view(DTYPES[self.dtype][1])
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if math.prod(self.shape) and last >= elements.size:
            raise ValueError(f"a tensor reaches element {last} of a storage of {elements.size}")
        strides = [stride * elements.itemsize for stride in self.strides]
        start = min(self.offset, elements.size)
        return np.lib.stride_tricks.as_strided(elements[start:], self.shape, strides, writeable=False)


class _Rebuild:
    """A function a file may call. An object without attributes, so that a pickle's BUILD cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"sets the attribute {name!r} of a function")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)


def _typed_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, _grad, _hooks, dtype, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


def _globals() -> dict[tuple[str, str], Any]:
    """What a file may name. Classes are made anew for each file: nothing that one file does to them outlives it."""
    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): type("Namespace", (), {}),
        ("torch", "Size"): _Rebuild(tuple),
        ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Rebuild(_typed_tensor),
        ("torch._utils", "_rebuild_parameter"): _Rebuild(_first),
        ("torch._utils", "_rebuild_parameter_with_state"): _Rebuild(_first),
        ("torch.storage", "UntypedStorage"): "uint8",
    }
    for name, (storage, _) in DTYPES.items():
        known["torch", name] = known["torch", f"{storage}Storage"] = name
    return known


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers and refuses everything else."""

    def __init__(self, file: io.BufferedIOBase, storage: Callable[..., Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._globals = _globals()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise _Refused(f"{module}.{name}")
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or pid[0] != "storage":
            raise pickle.UnpicklingError("refers to something that is not a storage")
        return self._storage(*pid[1:])


class _Refused(Exception):
    """The file names something that is neither a tensor nor a plain container."""


def read_torch_file(path: pathlib.Path) -> Any:
    """What a torch checkpoint holds: nested containers with `Tensor`s, whose data is read when asked for.

    Raises:
      UserError: truncated or corrupt, names anything but tensors and plain containers, or a format that is not known.
    """
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
    try:
        return _read_zip(path) if start == ZIP_MAGIC else _read_legacy(path)
    except _Refused as error:
        raise UserError(
            f"{path}: refused, it names {error}; only tensors and plain containers are loaded. Save a state dict, or "
            "better a .safetensors file"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a corrupt pickle can fail in any way
        raise UserError(
            f"{path}: truncated or corrupt torch checkpoint ({type(error).__name__}: {error}); copy it again"
        ) from error


def _read_zip(path: pathlib.Path) -> Any:
    archive = zipfile.ZipFile(path)  # stays open as long as a storage may still be read
    entries = {entry.filename: entry for entry in archive.infolist()}
    descriptions = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
    if len(descriptions) != 1:
        raise UserError(f"{path}: a zip file, but not a torch checkpoint (no data.pkl in it)")
    root = descriptions[0].removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise UserError(f"{path}: has compressed entries, which torch does not write; save it again")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
    if order != b"little":
        raise UserError(f"{path}: big-endian data; save it again on a little-endian machine")

    def storage(dtype: str, key: str, _location: str, elements: int) -> Storage:
        return Storage(dtype, elements, lambda: archive.read(f"{root}data/{key}"))

    with archive.open(descriptions[0]) as file:
        return _Unpickler(file, storage).load()


def _read_legacy(path: pathlib.Path) -> Any:
    """Five pickles (magic, protocol, machine, contents, keys), then each storage: its length and its elements."""
    storages: dict[str, Storage] = {}

    def storage(dtype: str, key: str, _location: str, elements: int, view: tuple | None) -> Storage:
        if view is not None:
            raise _Refused("a storage that is a view of another one (torch before 0.4)")
        return storages.setdefault(key, Storage(dtype, elements))

    with path.open("rb") as file:
        magic, protocol, machine, contents, keys = (_Unpickler(file, storage).load() for _ in range(5))
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
            raise UserError(f"{path}: a pickle, but not a torch checkpoint; save it with torch, or as .safetensors")
        if not machine.get("little_endian", True):
            raise UserError(f"{path}: big-endian data; save it again on a little-endian machine")
        for key in keys:
            elements = int.from_bytes(file.read(8), "little")
            length = elements * np.dtype(DTYPES[storages[key].dtype][1]).itemsize
            data = file.read(length)
            if len(data) < length:
                raise EOFError(f"storage {key} ends early")
            storages[key].load = lambda data=data: data
    return contents


def tensors(contents: Mapping[str, Any], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict; entries that are not tensors (steps, settings) are left out.

    Raises:
      UserError: a tensor's data is missing or does not fit its shape.
    """
    arrays = {}
    for name, value in contents.items():
        if isinstance(value, Tensor):
            try:
                arrays[name] = value.array()
            except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{path}: {name}: truncated or corrupt ({error}); copy the file again") from error
    return arrays
