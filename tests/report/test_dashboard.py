"""The tables of `dcal-results` on W&B, against the server of tests/wandb_server.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from run_command import refused, run_command
from wandb_server import answering


def command(run: Path, tmp_path: Path) -> list[str]:
    return [f"runs={run.parents[3]}", f"out={tmp_path / 'results'}", "wandb=somebody/dcal"]


def blocks(view: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [block for block in json.loads(view["spec"])["blocks"] if block["type"] == kind]


def test_tables_and_curves_are_written_once(
    fgvc_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Repeated, the command writes the same workspace and the same report anew."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'dcal[dashboard]'")
    with answering(monkeypatch, tmp_path) as server:
        said = []
        for _ in range(2):
            run_command("results", *command(fgvc_run, tmp_path))
            said.append(capfd.readouterr().out)
        assert said[0] == said[1] and f"workspace  {server.url}/somebody/dcal?nw=" in said[0]
        workspace, report = server.views.values()
    table = "\n".join(line for line in said[0].splitlines() if line.startswith("|"))
    (text,) = blocks(report, "markdown-block")
    assert table and table in text["content"]
    (grid,) = blocks(report, "panel-grid")
    (shown,) = grid["metadata"]["runSets"]
    assert "tiny/fgvc" in json.dumps(shown["filters"]), "only the runs of the table"
    assert grid["metadata"]["panelBankSectionConfig"]["panels"][0]["config"]["metrics"] == ["test/top1"]
    sections = json.loads(workspace["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["tiny-fgvc", "Losses"]
    losses = [panel["config"]["metrics"][0] for panel in sections[-1]["panels"]]
    logged = json.loads((fgvc_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(losses) <= set(logged)


def test_faults_are_named(
    fgvc_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    *words, _ = command(fgvc_run, tmp_path)
    assert "wandb=somebody: give ENTITY/PROJECT" in refused("results", *words, "wandb=somebody", capfd=capfd)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
        assert "pip install 'dcal[dashboard]'" in refused("results", *words, "wandb=a/b", capfd=capfd)
    pytest.importorskip("wandb_workspaces", reason="pip install 'dcal[dashboard]'")
    with answering(monkeypatch, tmp_path):
        monkeypatch.setenv("WANDB_API_KEY", "")
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        assert "wandb login" in refused("results", *words, "wandb=a/b", capfd=capfd)
