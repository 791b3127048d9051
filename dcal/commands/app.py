"""The door of the commands: it does what needs no torch, then loads the command's module and calls its one function.

Whatever goes wrong for a reason that the user can change is one sentence; of a fault of the program the stack is shown.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcal import __version__
from dcal import config as schema
from dcal.commands.words.keys import check_complete, check_words, config_file, config_folders, group_options
from dcal.commands.words.members import with_members
from dcal.commands.words.overrides import follow_image_size, prepare
from dcal.commands.words.parser import late_help_texts
from dcal.distributed.env import work_alone
from dcal.utils.errors import UserError, is_for_user
from dcal.utils.memory import keep_freed_memory
from dcal.utils.paths import ensure_home, experiments_dir, tidy_wandb_environment
from dcal.utils.signals import Interrupted, hand_on
from dcal.utils.streams import make_stderr_optional

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: 1 makes it raise its errors instead of printing them."""
CONFIGURED = ("train", "evaluate", "calibrate", "predict", "extract", "query", "explain", "export", "results", "bench")
"""Commands with a configuration file of their own."""
OTHERS = ("queue", "doctor")
"""Their words are those of `dcal-train` and a few more, which their module lists."""


def run(name: str) -> None:
    """Runs a command on the words of the command line.

    What needs no torch is done here: help, version, completion, a check of the words, the configuration. Only then is
    the command's module loaded, with all that it imports. What the user can correct, and a Ctrl-C, is one sentence.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words) or (name == "queue" and not words):
        print(module_text(name) if name in OTHERS else help_text(name))
    elif "--version" in words:
        print(f"dcal {__version__}")
    else:
        try:
            if name == "queue":
                command_function(name)(words)
            elif name == "doctor":
                examine(words)
            else:
                hydra_command(name, name)
        except KeyboardInterrupt:
            raise_stopped()
        except (UserError, HydraException, OmegaConfBaseException) as error:
            if full_errors():
                raise
            refuse(str(error) if isinstance(error, UserError) else one_sentence(error))


train, evaluate, calibrate, predict, extract, query, explain, export, results, bench, queue, doctor = (
    functools.partial(run, name) for name in (*CONFIGURED, *OTHERS)
)
"""The entry points `dcal-NAME`; each calls the function NAME of the module `dcal.commands.NAME`."""


def command_function(name: str, function: str | None = None) -> Callable[..., Any]:
    """A function of a command's module, the command itself if not named."""
    return getattr(importlib.import_module(f"dcal.commands.{name}"), function or name)


def examine(words: Sequence[str]) -> None:
    """`dcal-doctor`: looks at one run (`run=`), or at what `dcal-train` needs with the same words."""
    runs = [word.partition("=")[2] for word in words if word.startswith("run=")]
    if runs:
        folders, known = config_folders(words), ("run=", "root=", "trust=true", "trust=false", "-cd", "--config-dir")
        others = [word for word in words if not word.lower().startswith(known) and Path(word).absolute() not in folders]
        if others:
            raise UserError(f"{' '.join(others)}: has no effect on run=, leave it out; root=FOLDER says where runs are")
        root = next((word.partition("=")[2] for word in reversed(words) if word.startswith("root=")), "outputs")
        with modules_of_current_folder() if may_name_code("doctor") else nullcontext():
            command_function("doctor", "examine_run")(runs[-1], root, is_trusted(words), folders)
        return
    # a check leaves no folder behind, and of an ablation it looks at what the points have in common
    sys.argv[1:] = [*words, "hydra.run.dir=.", *(() if {"-m", "--multirun"} & set(words) else ["hydra.mode=RUN"])]
    hydra_command("doctor", "train")


def hydra_command(name: str, config_name: str) -> None:
    """Runs a command as a Hydra application over `conf/` and `experiments/`, from any directory.

    Args:
        name: of the command, whose function gets the composed configuration.
        config_name: of that configuration, see `config_file`.

    Raises:
        UserError, HydraException, OmegaConfBaseException: a word of the command line is wrong.
    """
    words = sys.argv[1:]
    make_stderr_optional()
    ensure_home()
    tidy_wandb_environment()
    keep_freed_memory()
    if config_name != "train":
        work_alone()
    schema.register()
    if {"-sc", "--shell-completion"} & set(words):  # the other words are Hydra's
        # of dcal-train alone: elsewhere figures= and the like are keys, not folders of experiments/
        if config_name == "train" and any(word.startswith("query=") for word in words):
            Plugins.instance().register(Experiments)
    else:
        sys.argv[1:] = prepare(words, config_name)
        check_words(sys.argv[1:], config_name)
        sys.argv[1:] = follow_image_size(sys.argv[1:], config_name)
    with modules_of_current_folder() if may_name_code(config_name) else nullcontext():
        run_hydra(name, config_name)


class Experiments(SearchPathPlugin):
    """Shows the ablations of `experiments/` to shell completion, which reads no `hydra.searchpath` of a file."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("dcal", f"file://{experiments_dir()}")


def run_hydra(name: str, config_name: str) -> None:
    """Lets Hydra compose the configuration and call the command's function, in a sweep once for each point.

    Raises:
        HydraException, OmegaConfBaseException: the configuration cannot be composed. Hydra alone would print them
            between lines of its own.
    """
    asked = full_errors()

    def run_job(config: DictConfig) -> Any:
        if not asked:  # from here on errors are the job's; processes that it starts decide for themselves
            os.environ.pop(FULL_ERROR, None)
        try:
            if config_name == "train":
                config = with_members(config)
            check_complete(config)
            return command_function(name)(config)
        except (Interrupted, KeyboardInterrupt) as stopped:
            raise_stopped(stopped)
        except Exception as error:
            debug = config.run.debug if config_name == "train" else config.get("debug", False)
            if asked or debug or not is_for_user(error):
                raise
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
            refuse(str(error))

    os.environ[FULL_ERROR] = "1"
    try:
        folder = str(config_file(config_name).parent)
        with late_help_texts():
            hydra.main(config_path=folder, config_name=config_name, version_base="1.3")(run_job)()
    finally:
        if not asked:
            os.environ.pop(FULL_ERROR, None)


def full_errors() -> bool:
    """Whether the user wants to see stacks."""
    return os.environ.get(FULL_ERROR) == "1"


def one_sentence(error: Exception) -> str:
    """What an error of Hydra says, and its cause, without the lines on where in Hydra it arose."""
    texts = [str(found).strip() for found in (error, error.__cause__) if found is not None and str(found).strip()]
    lines = [text.splitlines()[0].removeprefix("Error merging override ").rstrip(".: ") for text in texts]
    if any(f"Key '{group}' not in" in text for group in ("experiment", "variant", "ablation") for text in texts):
        lines.append("the first line of such a file must be: # @package _global_")
    return ": ".join(dict.fromkeys(lines))


def may_name_code(config_name: str) -> bool:
    """Whether a `_target_` is the user's own: typed for a new run, or trusted by the user where a run is opened."""
    words = sys.argv[1:]
    return config_name == "train" or bool(config_folders(words)) or is_trusted(words)


def is_trusted(words: Sequence[str]) -> bool:
    """Whether the user vouches for the run that is opened."""
    return "trust=true" in map(str.lower, words)


@contextmanager
def modules_of_current_folder() -> Iterator[None]:
    """Makes a `_target_` of the user's own found in the current folder, behind all that is installed."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def module_text(name: str) -> str:
    """The docstring of a command's module, which is not loaded for it."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def help_text(config_name: str) -> str:
    """What `--help` prints: the command's configuration file with its comments, and the options of its groups."""
    lines = config_file(config_name).read_text(encoding="utf-8").splitlines()
    head = lines[: lines.index("defaults:")]
    end = lines.index("hydra:") if "hydra:" in lines else len(lines)
    body = lines[lines.index("", len(head)) : end]
    groups = [entry for entry in OmegaConf.create("\n".join(lines)).defaults if isinstance(entry, DictConfig)]
    names = [str(key).split()[-1] for entry in groups for key in entry if not str(key).startswith("override")]
    options = [f"{name}: {', '.join(group_options(name))}" for name in names]
    return "\n".join(
        [
            *(line.removeprefix("# ").removeprefix("#") for line in head),
            *(["", "GROUPS (group=option)", *options] if options else []),
            "",
            "KEYS (key=value) and their defaults; in a group: what --cfg job shows",
            *body,
            *([""] if body[-1] else []),
            "Hydra: --cfg job shows the composed configuration, -m runs a sweep, --hydra-help lists the other flags.",
        ]
    )


def refuse(problem: str) -> NoReturn:
    """Ends the command with a sentence on stderr and exit code 1."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(1)


def raise_stopped(stopped: BaseException | None = None) -> NoReturn:
    """Ends the command after a request to stop, with the exit code that shells give to its signal."""
    text = str(stopped or "")
    print(text or "stopped at once: repeat the command to go on", file=sys.stderr)
    number = getattr(stopped, "number", signal.SIGINT)
    hand_on(number)
    raise SystemExit(128 + number) from None
