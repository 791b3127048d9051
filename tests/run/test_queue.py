"""A list of experiments: its runs and their order, how far each is, and the protocol that is registered as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from run_command import run_command

from dcal.commands import queue as command
from dcal.commands.queue import Queued, locate, parse, work
from dcal.commands.results import plan
from dcal.run.directory import CONFIG_FILE, Run
from dcal.run.listing import state_of
from dcal.run.lock import acquire_lock
from dcal.run.queue import Job, jobs_of, read_queue, state_table
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir, experiments_dir
from dcal.utils.signals import Stop

PROTOCOL = experiments_dir() / "protocol" / "when.yaml"
LIST: dict[str, Any] = {
    "name": "list",
    "order": ["few", "many", "later"],
    "arms": {
        "plain": {"title": "the plain ViT", "overrides": ["attention=none"]},
        "both": {"title": "both branches", "overrides": ["attention=dcal", "train.epochs=2"]},
    },
    "cells": {
        "few": {
            "title": "few",
            "metric": "top1",
            "seeds": [3, 4],
            "overrides": ["experiment=tiny/fgvc", "train.epochs=1"],
            "arms": {"plain": ["train.batch_size=4"], "both": []},
        },
        "many": {
            "title": "many",
            "metric": "top1",
            "seeds": [3],
            "overrides": ["experiment=tiny/fgvc"],
            "grid": {"optimizer.lr": [0.1, 0.2], "optimizer.new_lr_scale": [1, 10]},
            "chosen": {"both": ["optimizer.weight_decay=0"]},
            "arms": {"both": []},
        },
        "later": {
            "title": "later",
            "metric": "top1",
            "seeds": [3],
            "chosen": None,
            "overrides": [],
            "arms": {"plain": []},
        },
    },
    "contrasts": {"primary": [{"of": "both", "against": "plain", "asks": "do they help"}], "exploratory": []},
    "predictions": [
        {"cells": ["few"], "of": "both", "against": "plain", "verdict": "undecided", "reason": "two seeds"}
    ],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "list.yaml"
    path.write_text(yaml.safe_dump({**LIST, **changes}, sort_keys=False), encoding="utf-8")
    return path


def changed(**keys: Any) -> dict[str, Any]:
    """A list of one cell, some of whose keys are others."""
    return {"cells": {"few": {**LIST["cells"]["few"], **keys}}, "order": ["few"]}


def test_whole_seeds_come_first_and_the_later_override_counts(tmp_path: Path) -> None:
    jobs = jobs_of(read_queue(written(tmp_path)), common=["device=cpu"])
    assert [str(job) for job in jobs] == [
        "few plain seed 3",
        "few both seed 3",
        "few plain seed 4",
        "few both seed 4",
        "many both optimizer.lr=0.1 optimizer.new_lr_scale=1 seed 3",
        "many both optimizer.lr=0.1 optimizer.new_lr_scale=10 seed 3",
        "many both optimizer.lr=0.2 optimizer.new_lr_scale=1 seed 3",
        "many both optimizer.lr=0.2 optimizer.new_lr_scale=10 seed 3",
    ]
    located = locate(jobs)
    plain, both = located[0].run.config, located[1].run.config
    assert (plain.train.epochs, plain.train.batch_size, plain.attention.pwca.blocks) == (1, 4, 0)
    assert (both.train.epochs, both.seed, both.name, both.device) == (2, 3, "list/few", "cpu")
    assert located[7].run.config.optimizer.new_lr_scale == 10 and located[7].run.config.optimizer.weight_decay == 0
    assert len({one.run.directory for one in located}) == len(located)


def test_words_are_taken_as_dcal_train_takes_them(tmp_path: Path) -> None:
    jobs = jobs_of(
        read_queue(written(tmp_path)), ["few"], ["dataset.image_size=64", f"run.root={tmp_path / '2026_11'}"]
    )
    config = locate(jobs)[0].run.config
    assert list(config.dataset.image_size) == [64, 64] and config.run.root.endswith("2026_11")
    assert list(config.dataset.resize) == [64, 64]  # in the old ratio
    with pytest.raises(UserError, match=r"run\.fresh=true: a list is continued"):
        locate(jobs_of(read_queue(written(tmp_path)), ["few"], ["run.fresh=true"]))


def test_a_protocol_plans_what_its_runs_are(tmp_path: Path) -> None:
    few = LIST["cells"]["few"]
    few = {**few, "overrides": [*few["overrides"], "dataset.image_size=64"]}
    protocol = read_queue(written(tmp_path, cells={**LIST["cells"], "few": few}))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):  # as a command's own Hydra
        planned = list(plan(protocol, ["few"]))
    assert {one.arm for one in planned} == {"plain", "both"}
    assert all(one.config["dataset.resize"] == [64, 64] for one in planned)


def test_a_cell_that_waits_for_another_is_left_out_and_refused_by_name(tmp_path: Path) -> None:
    queue = read_queue(written(tmp_path))
    with pytest.raises(UserError, match=r"^cells\.later\.chosen is open"):
        jobs_of(queue, ["later"])
    assert "later" in state_table(queue, []).splitlines()[-1]
    assert {job.cell for job in jobs_of(queue, ["many"])} == {"many"}


def test_arms_are_chosen_by_name(tmp_path: Path) -> None:
    queue = read_queue(written(tmp_path))
    assert {(job.cell, job.arm) for job in jobs_of(queue, arms=["both"])} == {("few", "both"), ("many", "both")}
    with pytest.raises(UserError, match="arms='bot': did you mean both"):
        jobs_of(queue, arms=["bot"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ["fewer"]}, "order='fewer': did you mean few"),
        ({"arms": {"plain": LIST["arms"]["plain"]}}, "cells.few='both'"),
        ({"cells": None}, "has the keys name, order, arms and cells"),
        ({"order": None}, "has the keys name, order, arms and cells"),
        ({"cells": {"few": {"title": "few", "arms": {}}}, "order": ["few"]}, "cells.few has no seeds, overrides"),
        ({"arms": {"plain": {}, "both": LIST["arms"]["both"]}}, "arms.plain has no title, overrides"),
        (changed(seeds=5), "cells.few.seeds=5: must be a list, each a whole number"),
        (changed(overrides=None), "cells.few.overrides=None: must be a list, each text"),
        (changed(arms=["plain"]), r"cells.few.arms=\['plain'\]: must be values by their names"),
        (changed(arms={"plain": None}), "cells.few.arms={'plain': None}: must be values by their names"),
        (changed(grid={"optimizer.lr": 0.1}), "cells.few.grid={'optimizer.lr': 0.1}: must be values by their names"),
        ({"cells": {"few": 5}, "order": ["few"]}, "cells.few has no title"),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_queue(path)


@pytest.mark.parametrize(
    "words", [["jobs=2"], ["a.yaml", "b.yaml"], ["a.yaml", "jobs=0"], ["a.yaml", "show=yes"], ["a.yaml", "seed=3"]]
)
def test_faults_of_the_command_line_are_named(words: list[str]) -> None:
    with pytest.raises(UserError):
        parse(words)


def test_own_words_and_overrides_are_told_apart() -> None:
    options = parse(["a.yaml", "cells=R0,R1", "arms=[A7]", "jobs=3", "dataset.root=/data/a b", "show=true"])
    assert options == (Path("a.yaml"), ["R0", "R1"], ["A7"], 3, True, ["dataset.root=/data/a b"])


def test_the_state_of_a_run_is_read_from_its_directory(tmp_path: Path) -> None:
    queue = read_queue(written(tmp_path))
    ((job, run), *_) = queued = locate(jobs_of(queue, ["few"], [f"run.root={tmp_path}"]))
    assert state_of(run.directory) == "not yet"
    run.directory.mkdir(parents=True)
    (run.directory / CONFIG_FILE).touch()
    assert state_of(run.directory) == "interrupted"
    run.failure_file.write_text("a traceback")
    assert state_of(run.directory) == "failed"
    lock = acquire_lock(run.directory)
    assert state_of(run.directory) == "running"
    lock.release()
    run.result_file.write_text("{}")
    assert state_of(run.directory) == "finished"
    lines = state_table(queue, [(job, state_of(run.directory)) for job, run in queued]).splitlines()
    assert lines[2] == "| few | few | 1 |  |  |  | 3 |" and lines[3] == "|  | plain: the plain ViT | 1 |  |  |  | 1 |"
    assert job.seed == 3


class Fake:
    """Instead of `dcal-train`: a process that ends after some time, with a result or without."""

    def __init__(self, fails: set[str]) -> None:
        self.fails, self.started, self.most, self.alive = fails, [], 0, []

    def __call__(self, one: Queued, at_a_time: int) -> subprocess.Popen[bytes]:
        one.run.directory.mkdir(parents=True, exist_ok=True)
        file = one.run.failure_file if str(one.job) in self.fails else one.run.result_file
        code = f"import time; time.sleep(0.3); open({str(file)!r}, 'w').close()"
        process = subprocess.Popen([sys.executable, "-c", code])
        self.started.append(str(one.job))
        self.alive = [other for other in self.alive if other.poll() is None] + [process]
        self.most = max(self.most, len(self.alive))
        return process


def test_runs_go_several_at_a_time_in_order_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "POLL_SECONDS", 0.02)
    queued = locate(jobs_of(read_queue(written(tmp_path)), ["few"], [f"run.root={tmp_path}"]))
    fake, changes = Fake({"few both seed 3"}), []
    monkeypatch.setattr(command, "start", fake)
    assert work(queued, 2, Stop(), lambda: changes.append(1)) == 1
    assert fake.started == [str(one.job) for one in queued] and fake.most == 2 and len(changes) >= 3
    fake.started, fake.fails = [], set()
    assert work(queued, 2, Stop(), lambda: None) == 0
    assert fake.started == ["few both seed 3"]  # what is done is not repeated, what failed is


@pytest.mark.parametrize("inside", [False, True], ids=["before the run is held", "in the run"])
def test_a_failed_start_is_shown_as_failed_with_its_error_and_its_log(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What ends before it has begun leaves nothing in its directory; the list must not call it not yet begun."""
    monkeypatch.setattr(command, "POLL_SECONDS", 0.02)

    def start(one: Queued, at_a_time: int) -> subprocess.Popen[bytes]:
        one.run.directory.mkdir(parents=True, exist_ok=True)
        if inside:
            one.run.failure_file.write_text("Traceback\ndcal.UserError: too many\n", encoding="utf-8")
        with (one.run.directory / "queue.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", "raise SystemExit('error: too many')"], stderr=log)

    monkeypatch.setattr(command, "start", start)
    words = [str(written(tmp_path)), "cells=many", f"run.root={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit) as ended:
        run_command("queue", *words)
    told = capfd.readouterr().out
    assert ended.value.code == 1 and "| many | many |  |  | 4 |  |  |" in told
    (log, *_) = sorted((tmp_path / "runs").rglob("queue.log"))
    assert told.count(f": failed, error: too many; see {log}\n") == 2, "when it ends, and below the table"
    run_command("queue", *words, "show=true")
    table = capfd.readouterr().out
    assert table in told and table == (tmp_path / "runs" / "list.md").read_text(encoding="utf-8")


def test_a_new_attempt_forgets_the_failure_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = locate(jobs_of(read_queue(written(tmp_path)), ["few"], [f"run.root={tmp_path}"]))[0]
    one.run.directory.mkdir(parents=True)
    one.run.failure_file.write_text("a traceback")
    monkeypatch.setattr(command, "module_command", lambda *words: ["-c", "print('begun')"])
    command.start(one, 1).wait()
    assert state_of(one.run.directory) == "not yet"
    assert (one.run.directory / "queue.log").read_text(encoding="utf-8") == "begun\n"


def test_a_request_to_stop_ends_the_runs_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued = locate(jobs_of(read_queue(written(tmp_path)), ["few"], [f"run.root={tmp_path}"]))
    stop, started = Stop(), []

    def start(one: Queued, at_a_time: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        stop.ask(15)
        return started[-1]

    monkeypatch.setattr(command, "start", start)
    assert work(queued, 2, stop, lambda: None) == 0
    assert len(started) == 1 and started[0].returncode == -15


def test_the_data_are_read_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    identify = command.identify
    monkeypatch.setattr(command, "identify", lambda config: (asked.append(config), identify(config))[1])
    located = locate(jobs_of(read_queue(written(tmp_path)), ["few"], [f"run.root={tmp_path}"]))
    assert len(located) == 4 and len(asked) == 2
    directories = [run.directory for _, run in located]
    assert directories == [Run(run.config).directory for _, run in located] and len(set(directories)) == 4


def test_real_runs_are_completed_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in a folder with a package of the same name: the runs are those of the installed one."""
    foreign = tmp_path / "here" / "dcal"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('not this one')\n", encoding="utf-8")
    monkeypatch.chdir(foreign.parent)
    words = [str(written(tmp_path)), "cells=few", "jobs=2", f"run.root={tmp_path / 'runs'}", "wandb.mode=disabled"]
    for starts in (2, 0):
        with pytest.raises(SystemExit) as ended:
            run_command("queue", *words, "train.figures=false", "train.workers=0")
        told = capfd.readouterr().out
        assert ended.value.code == 0, told
        assert told.count("starts in") == 2 * starts and "| few | few | 4 |" in told
    assert "| few | few | 4 |" in (tmp_path / "runs" / "list.md").read_text(encoding="utf-8")
    # what the list, registered as a protocol, says of them
    page = tmp_path / "README.md"
    page.write_text("<!-- results:list-predictions -->\n<!-- /results -->\n", encoding="utf-8")
    out = [f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'records'}", f"figures={tmp_path / 'figures'}"]
    run_command("results", f"verdicts={tmp_path / 'list.yaml'}", *out, "write=true")
    told = capfd.readouterr().out
    assert "| few | few | 4 | 4 | done |" in told and "both − plain" in told and "2 of 2" in told
    assert "| undecided | undecided | right | two seeds |" in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "list.png").is_file()


# --- the registered protocol


def test_every_arm_of_the_protocol_composes_into_a_run_of_its_own() -> None:
    queue = read_queue(PROTOCOL)
    for cell in queue["cells"].values():
        cell["seeds"] = cell["seeds"][:1]
        cell["grid"] = {key: values[:1] for key, values in cell.get("grid", {}).items()}
        cell["chosen"] = cell.get("chosen") or {}
    located = locate(jobs_of(queue))
    runs = {(job.cell, job.arm): run for job, run in located}
    assert len({run.directory for run in runs.values()}) == len(located) == len(runs)
    first = runs["R0", "A9"].config
    assert first.attention.pwca.probability == 0.5 and list(first.attention.pwca.blocks) == [6, 7, 8, 9]
    assert first.optimizer.lr == 0.008 and first.optimizer.opt == "sgd" and first.train.epochs == 3
    assert runs["R7", "A0"].config.optimizer.opt == "momentum" and runs["R7", "A0"].config.train.epochs == 120
    assert runs["R7", "A8"].config.task.loss_weighting == "uncertainty_always"


def test_contrasts_and_predictions_are_about_arms_that_are_run_together() -> None:
    queue = read_queue(PROTOCOL)
    together = [set(cell["arms"]) for cell in queue["cells"].values()]
    for kind in ("primary", "exploratory"):
        for contrast in queue["contrasts"][kind]:
            assert any({contrast["of"], contrast["against"]} <= arms for arms in together), contrast
    for prediction in queue["predictions"]:
        assert prediction["verdict"] in ("better", "worse", "equivalent", "undecided") and prediction["reason"]
        for cell in prediction["cells"]:
            assert {prediction["of"], prediction["against"]} <= set(queue["cells"][cell]["arms"]), prediction


def test_a_job_says_what_to_type() -> None:
    assert Job("R0", "A0", "", 3, ("attention=none",)).words == ["attention=none", "seed=3"]
