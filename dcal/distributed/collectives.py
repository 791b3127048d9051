"""Many processes as one: what they tell each other so that a run does not depend on their number.

Every process loads its share of a global batch of `train.batch_size` images, and the images are gathered, as bytes.
PWCA pairs are drawn for the global batch, by the first process. `dcal.training.accumulation` cuts it along the chains
of partners into a piece for each process, which takes in the few partners that are in other pieces: the same as for
accumulation.
The features are gathered, and every process computes heads and losses of the global batch, all of which triplets and
BNNeck see. The backward pass of `all_gather` gives each row the sum of the gradients that the processes have for it,
and averaging the gradients of the weights (DDP, FSDP) undoes the repetition. So a step is that of one process, up to
rounding; only what the trunk itself draws (stochastic depth, random selection, noise partners) is each process's own.

Evaluation is shared by whole batches, ranking by whole blocks of queries: equal to one process in every bit.

Without `init_distributed`, or in a run of one process, everything here is the identity and costs nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dcal.distributed import env
from dcal.utils.accelerator import make_current
from dcal.utils.device import choose_device
from dcal.utils.errors import UserError

# newer torch warns of the older names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_size = 1  # of the group that `init_distributed` made; a group of somebody else's program is none of ours


@contextmanager
def init_distributed(device: str) -> Iterator[None]:
    """Makes this process one of those that torchrun started, if it did; leaves them when all went well.

    Args:
        device: as for `choose_device`; of several accelerators every process takes that of its local rank.

    Raises:
        UserError: no such device, or one by its index for several processes.
    """
    global _size
    chosen = choose_device(device)
    if env.world_size() == 1:
        make_current(chosen)
        yield
        return
    if chosen.index is not None:
        raise UserError(f"device={device} is one device for {env.world_size()} processes: set device={chosen.type}")
    if chosen.type != "cpu":  # a batch system may show each process one GPU only: its own
        make_current(torch.device(chosen.type, env.local_rank() % torch.accelerator.device_count()))
    elif "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", env.world_size()))))
    backends = {kind: dist.Backend.default_device_backend_map[kind] for kind in ("cpu", chosen.type)}
    dist.init_process_group(",".join(f"{kind}:{backend}" for kind, backend in backends.items()))
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)  # the first process says what goes well
    _size = env.world_size()
    try:
        yield
    finally:
        _size = 1
    dist.destroy_process_group()  # not after an error: the others may be waiting, and this would wait with them


def world_size() -> int:
    """Processes of the run, 1 if it is alone."""
    return _size


def rank_and_world_size() -> tuple[int, int]:
    """This process, from 0, and the number of processes."""
    return (dist.get_rank(), _size) if _size > 1 else (0, 1)


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward: the sum of all processes' gradients for one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // _size, *gradient.shape[1:])
        _reduce_scatter(own, gradient.contiguous())
        return own


def _gathered(rows: Tensor) -> Tensor:
    every = rows.new_empty(_size * len(rows), *rows.shape[1:])
    _all_gather(every, rows.contiguous())
    return every


def all_gather(rows: Tensor) -> Tensor:
    """The rows of the global batch from those of its slices, equally many in each; differentiable."""
    if _size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def local_slice(rows: Tensor) -> Tensor:
    """This process's slice of the rows of a global batch."""
    rank, parts = rank_and_world_size()
    return rows if parts == 1 else rows.chunk(parts)[rank]


def broadcast(tensor: Tensor) -> Tensor:
    """The tensor of the first process, which all take for theirs."""
    if _size > 1:
        dist.broadcast(tensor, 0)
    return tensor


def all_reduce_max(*numbers: int) -> list[int]:
    """The largest of each number over the processes: what follows from a clock or a signal is decided together."""
    if _size == 1:
        return list(numbers)
    votes = torch.tensor(numbers)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    largest: list[int] = votes.tolist()
    return largest


def all_gather_batches(batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The global batches from this process's shares of them. The images travel from device to device."""
    for batch in batches:
        shares = batch if _size == 1 else {**batch, "image": batch["image"].to(device, non_blocking=True)}
        yield {key: all_gather(share) for key, share in shares.items()}


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over the processes, for the few parameters that neither DDP nor FSDP takes care of."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if _size == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / _size).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def all_gather_object(mine: Any) -> list[Any]:
    """Something small of every process, by rank."""
    every: list[Any] = [mine] * _size
    if _size > 1:
        dist.all_gather_object(every, mine)
    return every


def gather_items(items: Mapping[str, Tensor], position: str) -> dict[str, Tensor]:
    """A table of CPU tensors, one row per item, from the processes' parts of it.

    Args:
        items: this process's rows, of any number; nothing at all (not even the columns) if it has none.
        position: the column with each row's place, by which the whole is ordered.
    """
    if _size == 1:
        return dict(items)
    layouts = all_gather_object({name: (column.shape, column.dtype) for name, column in items.items()})
    names = max(layouts, key=len)
    whole = {}
    for name, (shape, dtype) in names.items():
        counts = [layout[name][0][0] if layout else 0 for layout in layouts]
        padded = torch.zeros(max(counts), *shape[1:], dtype=dtype)
        if name in items:
            padded[: len(items[name])] = items[name]
        parts = _gathered(padded).chunk(_size)
        whole[name] = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    order = whole[position].argsort()
    return {name: column[order] for name, column in whole.items()}
