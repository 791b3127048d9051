"""What a training sums up while it runs, also when it is stopped and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dcal.dataset.record import Record
from dcal.training.meter import BadLoss, Meter
from dcal.utils.paths import config_dir


def meter() -> Meter:
    cfg = OmegaConf.load(config_dir() / "train.yaml").train
    return Meter(cfg, 4, [Record(Path(f"/birds/{number}.jpg"), 0) for number in range(8)])


def batches(first: int, last: int) -> list[dict[str, Tensor]]:
    return [{"label": torch.zeros(2), "index": torch.tensor([2 * n, 2 * n + 1])} for n in range(first, last)]


def train(one: Meter, first: int, last: int, clock: list[float]) -> None:
    """Two seconds a batch; the loss is the number of the batch."""
    for number, batch in enumerate(one.watch(batches(first, last), 0, first), first):
        clock[0] += 2.0
        one.add({"loss": torch.tensor(float(number)), "sa": torch.tensor(1.0)}, batch, number)


@pytest.mark.parametrize("stop", [1, 4])  # in mid-epoch; and in the evaluation, when the epoch's batches are done
def test_an_epoch_in_two_sessions_is_summed_up_as_one(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("dcal.training.meter.time.monotonic", lambda: clock[0])
    first, second = meter(), meter()
    train(first, 0, stop, clock)
    clock[0] += 50.0  # of evaluation, and of nothing between the sessions
    second.restore(first.state(), first.seconds())
    train(second, stop, 4, clock)
    wanted = {"train/loss": 1.5, "train/loss_sa": 1.0, "train/images_per_second": 1.0}
    assert second.close_epoch() == wanted
    train(second, 0, 4, clock)
    assert second.close_epoch() == wanted
    assert second.seconds() == 50.0 + 2 * 8.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_loss_is_told_with_its_images(bad: float) -> None:
    one = meter()
    one.add({"loss": torch.tensor(bad)}, batches(1, 2)[0], 7)
    with pytest.raises(BadLoss, match=r"the loss of step 7 is .*: lower optimizer\.lr.*birds/2\.jpg, birds/3\.jpg"):
        one.check_pending()
