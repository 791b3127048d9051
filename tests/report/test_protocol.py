"""A protocol's texts from records made by hand: verdicts only when all seeds are there, predictions marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcal.report.items import digest, encode_outcomes
from dcal.report.protocol.verdicts import (
    Planned,
    contrasts,
    contrasts_text,
    draw_map,
    predictions_text,
    read_protocol,
    sort_records,
    state_text,
)
from dcal.utils.errors import UserError
from dcal.utils.paths import experiments_dir

SEEDS = list(range(20, 28))
ITEMS = np.arange(400)


def protocol(**more: Any) -> dict[str, Any]:
    return {
        "name": "when",
        "order": ["R0", "R1"],
        "arms": {"A0": {"title": "plain"}, "A2": {"title": "itself"}, "A3": {"title": "PWCA"}},
        "cells": {
            "R0": {"title": "few", "metric": "top1", "margin": 1.0, "seeds": SEEDS, "arms": ["A0", "A2", "A3"]},
            "R1": {
                "title": "more",
                "metric": "top1",
                "margin": 1.0,
                "seeds": [1, 2],
                "arms": ["A0", "A3"],
                "chosen": None,
            },
        },
        "contrasts": {
            "primary": [
                {"of": "A3", "against": "A2", "asks": "does the distractor help"},
                {"of": "A3", "against": "A0", "asks": "does PWCA help"},
            ],
            "exploratory": [{"of": "A2", "against": "A0", "read": "sa", "asks": "does SA gain"}],
        },
        "predictions": [
            {"cells": ["R0"], "of": "A3", "against": "A2", "verdict": "better", "reason": "pilot"},
            {"cells": ["R0"], "of": "A3", "against": "A0", "verdict": "worse", "reason": "guess"},
            {"cells": ["R1"], "of": "A3", "against": "A0", "verdict": "better", "reason": "hope"},
        ],
        **more,
    }


PLANNED = [
    Planned(cell, arm, "", {"attention": arm, "train.epochs": epochs, "backbone.checkpoint": "elsewhere"})
    for cell, epochs in (("R0", 3), ("R1", 9))
    for arm in ("A0", "A2", "A3")
]


def record(arm: str, seed: int, share: float, epochs: int = 3) -> dict[str, Any]:
    right = np.random.RandomState([seed, int(1000 * share)]).permutation(ITEMS) < round(share * len(ITEMS))
    items = {
        "count": len(ITEMS),
        "digest": digest(ITEMS.astype("<i8"), ""),
        "top1": encode_outcomes(right),
        "top1_sa": encode_outcomes(right),
    }
    config = {"attention": arm, "train.epochs": epochs, "backbone.checkpoint": "w.safetensors", "task": "fgvc"}
    return {"cfg_id": arm, "seed": seed, "config": config, "items": items, "train_seconds": 1800.0}


def results(shares: dict[str, float], seeds: list[int] = SEEDS, **more: Any) -> dict[str, Any]:
    runs = [record(arm, seed, share, **more) for arm, share in shares.items() for seed in seeds]
    return {"when-R0": {"name": "when/R0", "runs": runs}}


def test_verdicts_and_predictions() -> None:
    plan = protocol()
    finished, strangers = sort_records(PLANNED, results({"A0": 0.5, "A2": 0.5, "A3": 0.7}), "when")
    assert not strangers
    found = contrasts(plan, finished)
    verdicts = {(one.cell, one.label): one.verdict for one in found}
    assert verdicts["R0", "A3 − A2"] == verdicts["R0", "A3 − A0"] == "better"
    assert verdicts["R0", "A2 − A0, SA alone"] in ("undecided", "equivalent")
    assert verdicts["R1", "A3 − A0"] is None
    rows = predictions_text(plan, found).splitlines()[2:]
    assert [row.split(" | ")[4] for row in rows] == ["right", "**wrong**", "open"]
    assert "8 of 8" in contrasts_text(found) and "exploratory" in contrasts_text(found)
    # 3 arms x 8 seeds of half an hour
    assert "| R0 | few | 24 | 24 | done | 12.0 |" in state_text(plan, finished)
    assert "waits for the rates" in state_text(plan, finished)


def test_no_verdict_before_all_seeds() -> None:
    finished, _ = sort_records(PLANNED, results({"A0": 0.5, "A2": 0.5, "A3": 0.7}, SEEDS[:7]), "when")
    found = contrasts(protocol(), finished)
    assert all(one.verdict is None for one in found)
    assert "7 of 8" in contrasts_text(found) and "not all seeds yet" in contrasts_text(found)


def test_seeds_that_are_not_registered_do_not_count() -> None:
    finished, _ = sort_records(PLANNED, results({"A0": 0.5, "A3": 0.7}, [*SEEDS[:2], 99]), "when")
    pair = next(one for one in contrasts(protocol(), finished) if one.label == "A3 − A0")
    assert pair.difference is not None and pair.difference.seeds == 2


def test_a_run_with_other_settings_is_no_arm() -> None:
    finished, strangers = sort_records(PLANNED, results({"A0": 0.5}, [20], epochs=1), "when")
    assert not any(finished.values())
    assert strangers == ["when/R0 A0: no arm of the protocol (train.epochs=1, planned 3)"]


def test_a_seed_counts_once() -> None:
    found = results({"A0": 0.5}, [20])
    found["when-R0"]["runs"].append({**record("A0", 20, 0.9), "cfg_id": "other"})
    finished, strangers = sort_records(PLANNED, found, "when")
    assert len(finished["R0", "A0", ""]) == 1 and strangers == ["when/R0 other seed 20: run twice"]


def test_holm_counts_contrasts_that_are_to_come() -> None:
    plan = protocol()
    shares = {"A0": 0.5, "A3": 0.7}  # A2 has not run: A3 - A2 is declared and still open
    alone = contrasts(protocol(contrasts={"primary": plan["contrasts"]["primary"][1:], "exploratory": []}), {})
    assert [one.verdict for one in alone] == [None, None]
    finished, _ = sort_records(PLANNED, results(shares), "when")
    assert next(one for one in contrasts(plan, finished) if one.label == "A3 − A0").verdict == "better"


def test_unknown_names_are_refused() -> None:
    odd = {"primary": [{"of": "A9", "against": "A0", "asks": "?"}], "exploratory": []}
    with pytest.raises(UserError, match=r"contrasts\.primary: A9 is none of the arms"):
        contrasts(protocol(contrasts=odd), {})
    other = [{"cells": ["R1"], "of": "A2", "against": "A0", "verdict": "better", "reason": ""}]
    with pytest.raises(UserError, match="predictions: R1 has no contrast A2 A0"):
        predictions_text(protocol(predictions=other), contrasts(protocol(), {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("of: A7, against: A0, asks: does DCAL help|against: A0, asks: does DCAL help", "does not say of"),
        ("verdict: better|verdict: beter", r"verdicts=.*predictions='beter': did you mean better"),
    ],
)
def test_a_protocol_that_says_too_little_or_no_verdict_is_refused(change: str, message: str, tmp_path: Path) -> None:
    text = (experiments_dir() / "protocol" / "when.yaml").read_text()
    old, new = change.split("|")
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_protocol(tmp_path / "mine.yaml")


def test_the_map_is_the_same_file_twice(tmp_path: Path) -> None:
    finished, _ = sort_records(PLANNED, results({"A0": 0.5, "A2": 0.5, "A3": 0.7}), "when")
    found = contrasts(protocol(), finished)
    for name in ("one.png", "two.png"):
        draw_map(protocol(), found, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
