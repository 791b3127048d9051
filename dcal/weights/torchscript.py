"""The parameters of a TorchScript archive, such as OpenAI's CLIP files, without running the program in it.

`torch.jit.load` compiles the archive's code and may run parts of it. Its `data.pkl` alone says which module holds which
tensor: it is read by an unpickler that makes plain dictionaries of the modules and knows no other object.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


class Module(dict[str, Any]):
    """The attributes of a scripted module: tensors, modules and settings."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive is one of `torch.jit.save`: it holds code, and constants of that code."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> Module:
    """The modules of the archive as nested dictionaries, tensors at the leaves; nothing of its code runs.

    Raises:
        pickle.UnpicklingError: an object that no module of plain layers needs.
    """
    with zipfile.ZipFile(path) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        return _Unpickler(archive, record).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, record: str) -> None:
        super().__init__(io.BytesIO(archive.read(record)))
        self.archive, self.folder = archive, record.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        raise pickle.UnpicklingError(f"{module}.{name} in a TorchScript archive")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)
