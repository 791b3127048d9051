"""No code of a weight file runs: neither a pickle's nor TorchScript's."""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dcal.weights.files import CheckpointError, read_tensors


class Exploit:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import test_files; test_files.Exploit.ran = True",)


def test_a_pickle_that_runs_code_is_refused_and_the_way_out_named(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Exploit()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"pickled objects besides tensors \(builtins.exec\).*If you trust"):
        read_tensors(tmp_path / "evil.pth")
    torch.save({"model": {"a": torch.zeros(1)}, "best": np.float64(0.5)}, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match=r"numpy.*weights_only=False"):
        read_tensors(tmp_path / "best.pth")
    assert not Exploit.ran


def test_arguments_of_a_script_are_read_past(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1, names=["b"])}, tmp_path / "own.pth")
    assert read_tensors(tmp_path / "own.pth") == {"model.a": torch.ones(1)}


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.tied = self.layers[0]
        self.sizes = [1, 2]
        self.scale = nn.Parameter(torch.randn(4, 3).T[1:], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.sizes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torchscript_gives_the_tensors_that_torch_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Scripted().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files remain
        torch.jit.script(model).save(str(tmp_path / "model.pt"))
    tensors = read_tensors(tmp_path / "model.pt")
    expected = model.state_dict()
    assert set(tensors) == set(expected)
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in expected.items()
    )


@pytest.mark.parametrize("target", ["builtins exec", "os system", "torch.jit._pickle restore_type_tag", "torch load"])
def test_an_archive_of_torchscript_that_names_other_functions_is_refused(target: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", pickle.dumps(()))
        archive.writestr("evil/data.pkl", f"c{target.replace(' ', chr(10))}\n(S'Exploit'\ntR.".encode())
    with pytest.raises(CheckpointError, match=rf"{target.replace(' ', '.')} in a TorchScript archive"):
        read_tensors(tmp_path / "evil.pt")


def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tmp_path: Path) -> None:
    """The sizes in an archive are the sender's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(nn.Linear(3, 2)), buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(tmp_path / "short.pt", "w") as short:
        for name in whole.namelist():
            short.writestr(name, whole.read(name)[: 4 if "/data/" in name else None])
    with pytest.raises(CheckpointError, match=r"short.pt cannot be read as weights"):
        read_tensors(tmp_path / "short.pt")
