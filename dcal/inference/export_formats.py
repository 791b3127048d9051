"""The formats of `dcal-export`: what is written, by what it is run, and what the program that loads it feeds it.

How the trackers load a re-identification model was read in their own code: `boxmot.reid.backends` of BoxMOT 25 and
`ultralytics.trackers.utils.reid` of Ultralytics 8.4. Both read the image size from the graph, want the features in its
first (Ultralytics: its only) output, and take them to length 1 themselves.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from dcal.inference.export_graph import Graph, Runner, onnx_runner, save_folder, save_onnx, save_torch_export
from dcal.inference.pretrained import TrainedDCAL
from dcal.utils.errors import UserError


class TrackerGraph(Graph):
    """The embedding alone, of RGB images in [0, 1].

    Raises:
        UserError: the model classifies, or embeds cameras, of which a tracker knows nothing.
    """

    def __init__(self, model: TrainedDCAL) -> None:
        super().__init__(model)
        if model.task != "reid":
            raise UserError("format: trackers re-identify, and this run has task=fgvc; take format=onnx")
        if len(self.inputs) > 1:
            raise UserError(
                "format: the model embeds the camera of each image (task.side_information), which a tracker does not "
                "tell; take format=onnx"
            )
        self.outputs = self.outputs[:1]

    def forward(self, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, ...]:
        return super().forward(images, side)[:1]


class BoxMOTGraph(TrackerGraph):
    """The same of images that BoxMOT has normalised with ImageNet's mean and standard deviation, whatever the model."""

    def __init__(self, model: TrainedDCAL) -> None:
        super().__init__(model)
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, ...]:
        return super().forward(images * self.std + self.mean, side)

    def feed(self, images: Tensor) -> Tensor:
        """As `boxmot.reid.core.crops` does."""
        return (images - self.mean) / self.std


def save_onnx_int8(graph: Graph, folder: Path) -> Runner:
    """Writes `model.onnx` with the weights of its linear layers in 8 bits, and returns it as onnxruntime runs it.

    Their inputs are quantised as they come (dynamic quantisation), so that no images are needed to calibrate; the
    rollout, which multiplies attention by attention, remains in fp32.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        save_onnx(graph, Path(temporary))
        from onnxruntime.quantization import QuantType, quantize_dynamic  # an extra, which is there now

        logging.getLogger().addFilter(_of_others)
        try:
            quantize_dynamic(
                Path(temporary) / "model.onnx",
                folder / "model.onnx",
                op_types_to_quantize=["MatMul", "Gemm"],  # not the patch embedding: few versions convolve in 8 bits
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        finally:
            logging.getLogger().removeFilter(_of_others)
    return onnx_runner(graph, folder / "model.onnx")


def _of_others(record: logging.LogRecord) -> bool:
    """Leaves out onnxruntime's notes: on each layer, and that the graph is to be prepared, as `torch.onnx` has done."""
    return "onnxruntime" not in record.pathname


def save_openvino(graph: Graph, folder: Path) -> Runner:
    """Writes `model.xml` and `model.bin` by OpenVINO's own converter, and returns them as OpenVINO runs them in fp32.

    Raises:
        UserError: openvino is not installed, or one of the packages that ONNX needs.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"format=openvino needs {error.name}: pip install 'dcal[openvino]'") from None
    with tempfile.TemporaryDirectory() as temporary:
        save_onnx(graph, Path(temporary))
        converted = openvino.convert_model(Path(temporary) / "model.onnx")
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
    # its default on some processors is bfloat16
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(folder / "model.xml"), "CPU", exact)

    def run(*inputs: Tensor) -> list[Tensor]:
        named = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        found = compiled(named)
        return [torch.from_numpy(found[name].copy()) for name in graph.outputs]

    return run


class Format(NamedTuple):
    """One option of `format=`."""

    save: Callable[[Graph, Path], Runner]
    """Writes a file or several into a folder, and returns what was written as it runs."""
    graph: Callable[[TrainedDCAL], Graph] = Graph
    exact: bool = True
    """Whether it must agree with PyTorch to `tolerance`; else what it costs is reported."""


FORMATS: dict[str, Format] = {
    "onnx": Format(save_onnx),
    "onnx_int8": Format(save_onnx_int8, exact=False),
    "openvino": Format(save_openvino),
    "boxmot": Format(save_onnx, BoxMOTGraph),
    "ultralytics": Format(save_onnx, TrackerGraph),
    "torch_export": Format(save_torch_export),
    "safetensors": Format(save_folder),
    "hub": Format(save_folder),
}
