"""An optimizer step as a CUDA graph: recorded once, then repeated by one call, without Python in between.

A GPU needs less time for the kernels of a step than Python for starting them one by one. A graph starts them all. It
repeats the same work on the same memory: a batch is copied into the buffers of the recorded one, losses are copied
out, and what changes from step to step must be in tensors, as the learning rates are. Random numbers go on as in eager
steps.

This is the only module that needs CUDA; what it records is `dcal.training.step.take_step`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from dcal.training.step import Batch
from dcal.utils.errors import first_error, first_line
from dcal.utils.memory import is_out_of_memory

log = logging.getLogger(__name__)
WARM_UP = 3
"""Eager steps before one is recorded: they compile, choose kernels and make the optimizer's state."""

T = TypeVar("T")
Step = Callable[[Batch], dict[str, Tensor]]


class Recorded(NamedTuple):
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses: dict[str, Tensor]


class GraphStep:
    """`step` by graphs, one for each kind of batch: with or without partners, heads alone or everything.

    Args:
        step: changes the state in place and returns its losses.
        optimizer: that `step` steps; one of those that `can_be_recorded`.
        device: a CUDA device.
        batch_size: of the batches that are recorded; a smaller one runs eagerly.
    """

    def __init__(self, step: Step, optimizer: Optimizer, device: torch.device, batch_size: int) -> None:
        self.step, self.optimizer, self.device, self.batch_size = step, optimizer, device, batch_size
        self.seen: Counter[tuple[Any, ...]] = Counter()
        self.recorded: dict[tuple[Any, ...], Recorded] = {}
        self.failed = False

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One step; returns its losses, which stay as they are when the next step is taken."""
        inputs = tensors_of(batch)
        kind = (
            batch.heads_only,
            batch.glca_alone,
            bool(batch.partners and batch.partners.noise),
            *(t.shape for t in inputs),
        )
        if self.failed or len(batch.labels) != self.batch_size:
            return self.step(batch)
        if any(other[:2] != kind[:2] for other in self.recorded):
            self.recorded.clear()  # of a stage of the run that is over: its graphs hold memory
        if not self.seen:
            put_numbers_into_tensors(self.optimizer, self.device)
        self.seen[kind] += 1
        if self.seen[kind] <= WARM_UP:
            return self.warm_up(batch)
        if kind not in self.recorded:
            try:
                self.recorded[kind] = self.record(batch)
            except RuntimeError as error:
                cause = first_error(error)  # the end of a recording that broke off fails, too
                if is_out_of_memory(cause):
                    raise cause from None
                self.failed = True
                reset_generator(self.device)
                log.warning("train.compile: no graph (%s), steps run kernel by kernel", first_line(cause))
                return self.step(batch)
        graph, buffers, losses = self.recorded[kind]
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        graph.replay()
        return {name: loss.clone() for name, loss in losses.items()}

    @cached_property
    def side_stream(self) -> torch.cuda.Stream:
        """One for all steps before a recording: the memory of a stream serves no other."""
        return torch.cuda.Stream(self.device)

    def warm_up(self, batch: Batch) -> dict[str, Tensor]:
        """An eager step on a stream of its own, as what is going to be recorded must have run."""
        main, side = torch.cuda.current_stream(self.device), self.side_stream
        side.wait_stream(main)
        with torch.cuda.stream(side):
            losses = self.step(batch)
        main.wait_stream(side)
        return losses

    def record(self, batch: Batch) -> Recorded:
        """Records the step on copies of the batch's tensors; nothing is computed yet."""
        buffers = [tensor.clone() for tensor in tensors_of(batch)]
        self.optimizer.zero_grad(set_to_none=True)  # gradients are to be of the graph's own memory
        graph, losses = record(partial(self.step, with_tensors(batch, buffers)), self.device)
        return Recorded(graph, buffers, losses)


def record(call: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what `call` does on the device, and the tensors that a replay writes its result to.

    Raises:
        RuntimeError: it asks for a value, or does something else that no graph can repeat.
    """
    graph = torch.cuda.CUDAGraph()
    # of this thread alone: that of the loader, which pins memory, must not break the recording off; and with a stream
    # to come back to, which a recording that breaks off does not do by itself
    before = torch.cuda.stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), before, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = call()
    return graph, result


def reset_generator(device: torch.device) -> None:
    """A recording that was broken off leaves the generator waiting for its end, and every later draw fails. A copy of
    the generator's state has the same seed and offset, and waits for nothing."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch without blended images, whose targets are the labels."""
    partners = None if batch.partners is None else batch.partners.index_B
    return [tensor for tensor in (batch.images, batch.labels, batch.side, partners) if tensor is not None]


def with_tensors(batch: Batch, tensors: list[Tensor]) -> Batch:
    """The batch with other tensors, in the order of `tensors_of`."""
    images, labels, *more = tensors
    side = more.pop(0) if batch.side is not None else None
    partners = batch.partners._replace(index_B=more.pop(0)) if batch.partners is not None else None
    return batch._replace(images=images, targets=labels, labels=labels, side=side, partners=partners)


def can_be_recorded(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step can be repeated as it is: no Python number in it changes from step to step."""
    groups = optimizer.param_groups
    if any("lookahead_k" in group for group in groups):  # it counts its steps in Python
        return False
    return all("capturable" in group or (isinstance(optimizer, SGD) and group["fused"]) for group in groups)


def put_numbers_into_tensors(optimizer: Optimizer, device: torch.device) -> None:
    """Learning rates and step counts as tensors on the device, so that a graph reads what they are when it runs."""
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not, on purpose
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device, torch.float32)
