"""A trained model as one graph for other runtimes: normalisation, both branches, the top-k between them, combination.

The graph takes RGB images in [0, 1] in batches of any size. ONNX is made from the same exported program that
`torch.export` saves, so there is one thing to compare with PyTorch, and it is compared before it is handed out.

Shapes: B images, C classes, D channels, K selected patches.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcal.inference.pretrained import TrainedDCAL, load
from dcal.utils.errors import UserError

OPSET = 18
"""Of ONNX: the oldest that has every operator needed. torch writes it as IR version 10: onnxruntime 1.18 and later."""

Runner = Callable[..., Sequence[Tensor]]
"""An exported graph: inputs in the order of `Graph.inputs`, outputs in that of `Graph.outputs`."""


class Graph(nn.Module):
    """A trained model from pixels to the answer.

    Inputs: `images`, float (B, 3, H, W), RGB in [0, 1]; `side`, int64 (B,), where the model embeds cameras. Outputs,
    by task: `probabilities` (B, C) or `embedding` (B, D) of length 1; then for each branch `logits_sa`, `logits_glca`
    (B, C), or `feature_sa`, `feature_glca` (B, D) before BNNeck; and with GLCA `selected`, int64 (B, K), the selected
    patches in ascending order, 0 being the one in the upper left corner.

    Raises:
        UserError: the model selects patches at random.
    """

    def __init__(self, model: TrainedDCAL) -> None:
        super().__init__()
        if model.glca is not None and model.glca.selection == "random":
            raise UserError("attention.glca.selection=random: a graph that draws patches anew cannot be compared")
        self.model = model.eval()
        classifies = model.task == "fgvc"
        branches = [branch for branch in ("sa", "glca") if branch in model.branches]
        self.inputs = ["images"] + (["side"] if model.side is not None else [])
        self.outputs = ["probabilities" if classifies else "embedding"]
        self.outputs += [f"{'logits' if classifies else 'feature'}_{branch}" for branch in branches]
        self.outputs += ["selected"] if model.glca is not None else []

    def forward(self, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, ...]:
        model = self.model
        output = model(model.normalise(images), side=side)
        classifies = model.task == "fgvc"
        combined = model.probabilities(output) if classifies else model.embedding(output)
        of_branches = (output.sa, output.glca) if classifies else output.features[:2]
        selected = None if output.selected is None else output.selected.sort(dim=1).values
        return tuple(t for t in (combined, *of_branches, selected) if t is not None)

    def feed(self, images: Tensor) -> Tensor:
        """What the program that runs the graph hands it of RGB images in [0, 1]."""
        return images

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of noise."""
        images = torch.rand(batch, 3, *self.model.image_size, generator=torch.Generator().manual_seed(seed))
        images = self.feed(images)
        return (images,) if len(self.inputs) == 1 else (images, torch.zeros(batch, dtype=torch.int64))


@torch.no_grad()
def program(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as an exported program whose batch size is free."""
    # bounded, for a slice's open end is sys.maxsize, which torch 2.8 takes for a size that the batch must not have
    batch = torch.export.Dim("batch", max=2**31 - 1)
    shapes = tuple({0: batch} for _ in graph.inputs)
    return torch.export.export(graph, graph.example(2), dynamic_shapes=shapes, strict=False)


def save_torch_export(graph: Graph, folder: Path) -> Runner:
    """Writes `model.pt2` and returns it as read back."""
    file = folder / "model.pt2"
    torch.export.save(program(graph), file)
    runner: Runner = torch.export.load(file).module()
    return runner


def save_onnx(graph: Graph, folder: Path) -> Runner:
    """Writes `model.onnx` and returns it as onnxruntime runs it.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"format: ONNX needs {error.name}: pip install 'dcal[export]'") from None
    for library in ("onnx_ir", "onnxscript"):  # they report every step, and every constant they do not fold
        logging.getLogger(library).setLevel(logging.ERROR)
    file = folder / "model.onnx"
    exported = torch.onnx.export(
        program(graph), input_names=graph.inputs, output_names=graph.outputs, opset_version=OPSET, verbose=False
    )
    assert exported is not None
    exported.save(file)
    return onnx_runner(graph, file)


def onnx_runner(graph: Graph, file: Path) -> Runner:
    """A file as onnxruntime runs it."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        named = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(graph.outputs, named)]

    return run


def save_folder(graph: Graph, folder: Path) -> Runner:
    """Writes weights, configuration and card as the Hugging Face Hub has them, and returns the model read back."""
    graph.model.save_pretrained(folder)
    return Graph(load(folder, device="cpu"))


class Parity(NamedTuple):
    """How an exported graph differs from PyTorch in fp32."""

    images: int
    batch_sizes: list[int]
    differences: dict[str, float]
    """Largest absolute difference by output."""
    other_patches: int | None
    """Images in which other patches are selected; None without GLCA."""
    same_top1: int | None
    """Images whose most probable class is the same; None in Re-ID."""
    answers: tuple[Tensor, Tensor]
    """The first output of PyTorch and of the exported graph, (images, C) or (images, D)."""


@torch.no_grad()
def compare(graph: Graph, runner: Runner, batches: Iterable[tuple[Tensor, ...]]) -> Parity:
    """Runs the graph in PyTorch and as exported.

    Args:
        batches: inputs of the graph; batches of several sizes show that the size is free.
    """
    sizes: dict[int, None] = {}
    differences = {name: 0.0 for name in graph.outputs if name != "selected"}
    images, same, other = 0, 0, 0
    answers: list[tuple[Tensor, Tensor]] = []
    for inputs in batches:
        expected, found = (dict(zip(graph.outputs, run(*inputs), strict=True)) for run in (graph, runner))
        for name in differences:
            difference = (expected[name] - found[name]).abs().max().item()
            differences[name] = max(differences[name], difference) if difference == difference else difference
        if "selected" in expected:
            other += int((expected["selected"] != found["selected"]).any(1).sum())
        answer = graph.outputs[0]
        answers.append((expected[answer], found[answer]))
        same += int((expected[answer].argmax(1) == found[answer].argmax(1)).sum())
        images += len(inputs[0])
        sizes[len(inputs[0])] = None
    return Parity(
        images,
        list(sizes),
        differences,
        other if "selected" in graph.outputs else None,
        same if "probabilities" in graph.outputs else None,
        (torch.cat([pair[0] for pair in answers]), torch.cat([pair[1] for pair in answers])),
    )


def parts(count: int, sizes: Sequence[int]) -> list[slice]:
    """`count` items cut into consecutive parts of the given sizes in turn, the last one shorter if need be."""
    starts = itertools.accumulate(itertools.cycle(sizes), initial=0)
    edges = [*itertools.takewhile(lambda start: start < count, starts), count]
    return [slice(*pair) for pair in itertools.pairwise(edges)]
