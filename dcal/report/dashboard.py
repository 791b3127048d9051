"""A W&B workspace and a W&B report, as code: the tables of `dcal-results`, with the curves of their runs below each.

Both are found again by their names and written anew, so that repeating the command gives no second ones. Needs
wandb-workspaces, `pip install 'dcal[dashboard]'`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from dcal.utils.errors import UserError

TITLE = "DCAL results"
"""Of the workspace and of the report."""
AXIS = "epoch"
LOSSES = ("train/loss", "train/loss_sa", "train/loss_glca", "train/loss_pwca", "train/lr")
"""What every run logs."""


class Page(NamedTuple):
    """A table and the runs that it is made of."""

    title: str
    text: str
    """The table in Markdown."""
    names: list[str]
    """Of runs, as `name` in their configuration."""
    metrics: list[str]
    """Logged after each epoch, as `test/top1`."""


def publish(project_path: str, pages: Sequence[Page]) -> tuple[str, str]:
    """Writes the workspace and the report of a project of W&B; returns their addresses.

    Args:
        project_path: `ENTITY/PROJECT`.
        pages: in their order.

    Raises:
        UserError: the library is missing, there is no such project, or W&B cannot be reached.
    """
    entity, _, project = project_path.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"wandb={project_path}: give ENTITY/PROJECT, as in the address of the project on W&B")
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError(f"wandb={project_path} needs wandb-workspaces: pip install 'dcal[dashboard]'") from None
    try:
        workspace = save_workspace(workspaces, reports, entity, project, pages)
        return workspace, save_report(wandb.Api(), reports, entity, project, pages)
    except Exception as error:  # the errors of the two libraries have no root in common
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"wandb={project_path}: {reason}; `wandb login`, if there is no key") from error


def save_workspace(workspaces: Any, reports: Any, entity: str, project: str, pages: Sequence[Page]) -> str:
    """Writes the workspace: per table a section of its curves, then the losses; returns its address.

    Args:
        workspaces, reports: the modules of wandb-workspaces.
    """
    name = hashlib.sha256(f"{entity}/{project}/{TITLE}".encode()).hexdigest()[:11]
    made = workspaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            *(
                workspaces.Section(name=page.title, panels=[*panels(reports, page.metrics)], is_open=True)
                for page in pages
            ),
            workspaces.Section(name="Losses", panels=panels(reports, LOSSES), is_open=False),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config("name"), workspaces.Config("label")],
            filters=of_names([name for page in pages for name in page.names]),
        ),
    )
    made._internal_name = f"nw-{name}-v"  # the library draws one, and a second workspace would be made each time
    try:
        made._internal_id = workspaces.internal.get_view_dict(entity, project, name)["id"]
    except ValueError:  # none yet
        made._internal_id = ""
    return str(made.save().url)


def save_report(api: Any, reports: Any, entity: str, project: str, pages: Sequence[Page]) -> str:
    """Writes the report: each table as text, its curves below; returns its address.

    Args:
        api: of W&B.
        reports: the module of wandb-workspaces.
    """
    blocks = []
    for page in pages:
        runs = reports.Runset(
            entity=entity, project=project, name=page.title, filters=of_names(page.names), groupby=["config.label"]
        )
        blocks += [
            reports.H2(page.title),
            reports.MarkdownBlock(page.text),
            reports.PanelGrid(runsets=[runs], panels=panels(reports, page.metrics)),
        ]
    found = [report for report in api.reports(f"{entity}/{project}") if report.display_name == TITLE]
    made = reports.Report(entity=entity, project=project, title=TITLE, blocks=blocks, width="fluid")
    made.id = found[0].id if found else ""
    return str(made.save().url)


def panels(reports: Any, metrics: Sequence[str]) -> list[Any]:
    """A chart per metric over epochs, configurations with mean and standard deviation over their seeds."""
    return [
        reports.LinePlot(
            title=metric, x=AXIS, y=[metric], groupby=reports.Config("label"), groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for metric in metrics
    ]  # fmt: skip


def of_names(names: Sequence[str]) -> str:
    """A filter for runs with one of these names."""
    return f"Config('name') in {sorted(set(names))!r}"
