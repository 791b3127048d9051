"""The tensors of a weight file by their names in it. No code of the file runs: no pickled object, no TorchScript.

Containers are flattened, so that `{"teacher": {"backbone.cls_token": ...}}` gives `teacher.backbone.cls_token`:
where the backbone is in the file is for `dcal.weights.layouts` to find, by the names of its parameters.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dcal.utils.errors import UserError, first_line
from dcal.weights.torchscript import is_torchscript, read_torchscript

SUFFIXES = ".safetensors, .pth, .pt, .bin or .npz"


class CheckpointError(UserError):
    """A weight file cannot be read or holds another architecture; the message names it and the remedy."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a weight file, by the dotted path of its names; containers other than dictionaries are left out.

    Args:
        path: `.safetensors`, a file of `torch.save` (read with `weights_only`; `argparse.Namespace`, which training
            scripts save with the weights, is the only object allowed in it), a TorchScript archive, or an `.npz` of
            numbers.

    Raises:
        CheckpointError: missing, torn or unsafe file, or one without tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(
            f"backbone.checkpoint={path} is a folder: give the weight file in it, or backbone.name=local-dir:{path} "
            "with backbone.pretrained=true if timm wrote it"
        )
    if not path.is_file():
        raise CheckpointError(f"backbone.checkpoint={path}: no such file")
    try:
        content = _read(path)
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise a dozen types for one thing: it cannot be read
        raise CheckpointError(
            f"backbone.checkpoint={path} cannot be read as weights ({first_line(error)}): give a whole file, "
            f"{SUFFIXES}, that holds nothing but tensors"
        ) from error
    tensors = dict(_flatten(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"backbone.checkpoint={path} holds no weights: give a file of named tensors")
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files if archive[name].dtype != object}
    if zipfile.is_zipfile(path) and is_torchscript(path):
        return read_torchscript(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a dozen types, the message of which says only that it failed
        unsafe = _unsafe_objects(path)
        if not unsafe:
            raise
        raise CheckpointError(
            f"backbone.checkpoint={path} holds pickled objects besides tensors ({', '.join(unsafe)}), and opening "
            'them can run code. If you trust its origin, write its weights anew: python -c "import torch; '
            f"f = torch.load('{path.name}', weights_only=False); "
            "torch.save(f.get('state_dict', f.get('model', f)), 'weights.pth')\""
        ) from error


def _unsafe_objects(path: Path) -> list[str]:
    """Names of the pickled objects in a file that `weights_only` does not allow; none if it is torn."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:4]
    except Exception:  # the file is no archive of torch: what the reader said is the better message
        return []


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
