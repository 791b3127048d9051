"""What a training sums up while it runs, also when it is stopped and goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_state import make_setup
from torch import Tensor

from dcal.dataset.record import Record
from dcal.training.meter import BadLoss, Meter, StepLog, create_meter
from dcal.utils.paths import config_dir


def meter(every: int | None = None, sent: list[dict[str, Any]] | None = None) -> Meter:
    cfg = OmegaConf.load(config_dir() / "train.yaml").train
    steps = StepLog(every, 4, lambda values, step: None if sent is None else sent.append(values), lambda: 0.25)
    return Meter(cfg, 4, [Record(Path(f"/birds/{number}.jpg"), 0) for number in range(8)], steps)


def batches(first: int, last: int) -> list[dict[str, Tensor]]:
    return [{"label": torch.zeros(2), "index": torch.tensor([2 * n, 2 * n + 1])} for n in range(first, last)]


def train(one: Meter, first: int, last: int, clock: list[float]) -> None:
    """Two seconds a batch; the loss is the number of the batch."""
    for number, batch in enumerate(one.watch(batches(first, last), 0, first), first):
        clock[0] += 2.0
        losses = {"loss": float(number), "sa": 1.0, "grad_norm": 10.0 + number}
        one.add({name: torch.tensor(value) for name, value in losses.items()}, batch, number)


def test_a_resumed_run_reports_the_rate_that_it_has() -> None:
    """The optimizer has other groups than before once it has read a checkpoint."""
    setup = make_setup()
    optimizer, schedule = setup.optimization
    setup.loader, setup.data = range(4), SimpleNamespace(records=lambda split: [])  # type: ignore[assignment]
    setup.train.log_every = None
    rate = create_meter(setup, None).steps.rate
    schedule.lr_lambdas[0] = lambda step: 0.5**step
    optimizer.load_state_dict(optimizer.state_dict())
    for expected in (0.05, 0.025):
        optimizer.step()
        schedule.step()
        assert rate() == optimizer.param_groups[0]["lr"] == expected


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
    one.add({"loss": torch.tensor(bad), "grad_norm": torch.tensor(1.0)}, batches(1, 2)[0], 7)
    with pytest.raises(BadLoss, match=r"the loss of step 7 is .*: lower optimizer\.lr.*birds/2\.jpg, birds/3\.jpg"):
        one.check_pending()


def test_every_few_batches_a_report(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Means since the last report; also where a run goes on between two reports. The last batch has none of its own."""
    clock = [100.0]
    monkeypatch.setattr("dcal.training.meter.time.monotonic", lambda: clock[0])
    sent: list[dict[str, Any]] = []
    one = meter(2, sent)
    train(one, 0, 4, clock)
    wanted = {
        "step": 1,
        "batch/loss": 0.5,
        "batch/loss_sa": 1.0,
        "batch/lr": 0.25,
        "batch/grad_norm": 11.0,
        "batch/data_seconds": 0.0,
        "batch/images_per_second": 1.0,
    }
    assert sent == [wanted]
    assert "epoch 1/40  batch 2/4  loss 0.500 (sa 1.000)  lr 2.50e-01  gradient norm 11.00" in capfd.readouterr().err

    first, second = meter(2, sent), meter(2, sent)
    train(first, 0, 1, clock)
    second.restore(first.state(), first.seconds())
    train(second, 1, 4, clock)
    assert sent[1:] == [{**wanted, "batch/loss": 1.0}]


def test_a_report_is_read_one_step_late() -> None:
    """A loss of the step that has just been queued on a GPU would have to be waited for."""
    sent: list[dict[str, Any]] = []
    one = meter(1, sent)
    seen = []
    for number, batch in enumerate(one.watch(batches(0, 4), 0, 0)):
        one.add({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}, batch, number)
        seen.append([values["step"] for values in sent])
    assert seen == [[], [0], [0, 1], [0, 1, 2]]


def test_without_an_interval_nothing_is_reported() -> None:
    sent: list[dict[str, Any]] = []
    train(meter(None, sent), 0, 4, [0.0])
    assert not sent
