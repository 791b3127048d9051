"""The precision of a device is its own: a caller's settings stay, and a run opens on what there is."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import dcal
from dcal.inference.restore import available_precision, restore
from dcal.utils.device import Device, choose_device
from dcal.utils.errors import UserError


def test_the_precision_of_float32_products_is_the_callers() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        device = Device("cpu", "bf16", (0.5,), (0.5,))
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(KeyError), device.autocast():
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_mistakes_name_their_key() -> None:
    with pytest.raises(UserError, match=r"^device='gpu': .*auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(UserError, match=r"^train\.precision='half'"):
        Device("cpu", "half", (0.5,), (0.5,))
    with pytest.raises(UserError, match=r"^train\.precision=fp16 needs a GPU"):
        Device("cpu", "fp16", (0.5,), (0.5,))


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_run_of_a_gpu_opens_on_the_cpu(
    precision: str, fgvc_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "seed=0"
    shutil.copytree(fgvc_run, run)
    config = OmegaConf.load(run / "config_resolved.yaml")
    config.train.precision = precision
    OmegaConf.save(config, run / "config_resolved.yaml")
    with caplog.at_level(logging.WARNING):
        assert restore(run, device="cpu").device.dtype is None
    assert f"trained in {precision}, which the CPU does not have: computing in fp32" in caplog.text
    torch.set_float32_matmul_precision("medium")
    try:
        dcal.load(run, device="cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    with pytest.raises(UserError, match="needs a GPU"):  # asked for by name, it is not replaced in silence
        restore(run, device="cpu", changes={"train": {"precision": precision}})
    assert available_precision("bf16", "cpu") == "bf16"
