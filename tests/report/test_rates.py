"""A protocol's choice of rates, from records whose best point is known."""

from __future__ import annotations

from typing import Any

import pytest

from dcal.report.protocol.rates import edges, rates_text, searches
from dcal.utils.errors import UserError

RATES = [1e-4, 2e-4, 4e-4]
LOSSES = {1e-4: 0.9, 2e-4: 0.7, 4e-4: 0.8}


def protocol(**more: Any) -> dict[str, Any]:
    arms = {"plain": [], "both": []}
    grid = {"optimizer.lr": RATES, "optimizer.new_lr_scale": [1, 10]}
    search = {"title": "rates", "metric": "top1", "seeds": [10, 11], "grid": grid, "arms": arms}
    return {
        "name": "when",
        "order": ["T", "R"],
        "cells": {"T": search, "R": {"title": "runs", "metric": "top1", "seeds": [1], "arms": arms, "chosen": None}},
        "choice": {"searches": {"T": {"by": "nll", "for": ["R"]}}, "within": 5, "families": {"plain": ["long"]}},
        **more,
    }


def finished(losses: dict[float, float] = LOSSES, **accuracy: float) -> dict[Any, Any]:
    """Two seeds of every point; ten times the head's rate costs 0.05 of loss and a tenth of a point."""
    found = {}
    for arm in ("plain", "both"):
        for rate in RATES:
            for scale in (1, 10):
                metrics = {"nll": losses[rate] + 0.005 * scale, "top1": accuracy.get(f"lr{rate:g}", 0.8) - 1e-4 * scale}
                runs = [{"seed": seed, "metrics": metrics} for seed in (10, 11)]
                found["T", arm, f"optimizer.lr={rate} optimizer.new_lr_scale={scale}"] = runs
    return found


def test_the_least_loss_is_chosen() -> None:
    plain, both = searches(protocol(), finished())
    assert plain.chosen == both.chosen == "optimizer.lr=0.0002 optimizer.new_lr_scale=1"
    assert not edges(protocol(), plain)  # the head's factor has two values: both are its ends
    text = rates_text(protocol(), finished())
    assert "| optimizer.lr=0.0002 optimizer.new_lr_scale=1 | **0.705 ± 0.000, 79.99 ± 0.00** |" in text
    words = "[optimizer.lr=0.0002, optimizer.new_lr_scale=1]"
    assert f"For R: `chosen: {{plain: {words}, long: {words}, both: {words}}}`" in text


def test_a_run_that_has_learned_nothing_is_not_chosen_for_its_loss() -> None:
    plain, _ = searches(protocol(), finished(**{"lr0.0002": 0.74}))
    assert plain.chosen == "optimizer.lr=0.0004 optimizer.new_lr_scale=1"
    assert edges(protocol(), plain) == ["optimizer.lr=0.0004"]
    assert "At an edge of the grid, which goes on one step further: plain at optimizer.lr=0.0004; both" in rates_text(
        protocol(), finished(**{"lr0.0002": 0.74})
    )


def test_the_greatest_metric_is_chosen_where_the_criterion_is_one() -> None:
    plan = protocol()
    plan["choice"]["searches"]["T"]["by"] = "top1"
    plain, _ = searches(plan, finished(**{"lr0.0001": 0.9}))
    assert plain.chosen == "optimizer.lr=0.0001 optimizer.new_lr_scale=1"
    assert "**89.99 ± 0.00**" in rates_text(plan, finished(**{"lr0.0001": 0.9}))  # one metric, once


def test_nothing_is_chosen_before_all_runs_are_there() -> None:
    found = finished()
    found["T", "both", "optimizer.lr=0.0001 optimizer.new_lr_scale=1"].pop()
    plain, both = searches(protocol(), found)
    assert plain.chosen and both.chosen is None
    text = rates_text(protocol(), found)
    assert "T is not complete (both): nothing is chosen yet." in text and "For R" not in text
    assert rates_text(protocol(), {}) == "No runs yet."


def test_without_a_rule_the_metric_chooses() -> None:
    plan = protocol()
    del plan["choice"]
    found = finished(**{"lr0.0002": 0.9})
    assert searches(plan, found)[0].chosen == "optimizer.lr=0.0002 optimizer.new_lr_scale=1"
    assert "For the cells that wait for it: `chosen: {plain: [" in rates_text(plan, found)


def test_an_arm_that_takes_no_choice_is_named() -> None:
    plan = protocol()
    plan["cells"]["R"]["arms"] = {"plain": [], "both": [], "light": []}
    with pytest.raises(UserError, match=r"choice\.families: light of R take no choice of T"):
        rates_text(plan, finished())
