"""What the commands share: composing the configuration, and errors a person can act on."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcal import __version__
from dcal import config as schema
from dcal.commands.keys import check_complete, check_words, config_file, group_options
from dcal.commands.overrides import follow_image_size, prepare
from dcal.distributed.env import work_alone
from dcal.utils.errors import UserError, is_for_user
from dcal.utils.memory import keep_freed_memory
from dcal.utils.paths import ensure_home, experiments_dir
from dcal.utils.signals import Interrupted, hand_on
from dcal.utils.streams import make_stderr_optional

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: 1 makes it raise its errors instead of printing them."""


class JobError(Exception):
    """A job cannot be done, for a reason that the user can change; the message is all that the user needs."""


def hydra_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `job` as a Hydra application over `conf/` and `experiments/`, from any directory.

    Args:
        job: what to do with the composed configuration.
        config_name: of the command, see `config_file`.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(help_text(config_name))
        return
    if "--version" in words:
        print(f"dcal {__version__}")
        return
    make_stderr_optional()
    try:
        ensure_home()
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
        with modules_of_current_folder() if config_name == "train" else nullcontext():
            run_hydra(job, config_name)
    except KeyboardInterrupt:
        raise_stopped()
    except UserError as error:
        refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        if full_errors():
            raise
        refuse(one_sentence(error))


class Experiments(SearchPathPlugin):
    """Shows the ablations of `experiments/` to shell completion, which reads no `hydra.searchpath` of a file."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("dcal", f"file://{experiments_dir()}")


def run_hydra(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Lets Hydra compose the configuration and call `job`, in a sweep once for each point.

    Raises:
        HydraException, OmegaConfBaseException: the configuration cannot be composed. Hydra alone would print them
            between lines of its own.
    """
    asked = full_errors()

    @functools.wraps(job)
    def run_job(config: DictConfig) -> Any:
        if not asked:  # from here on errors are the job's; processes that it starts decide for themselves
            os.environ.pop(FULL_ERROR, None)
        try:
            check_complete(config)
            return job(config)
        except (JobError, UserError) as error:
            if asked:
                raise
            refuse(str(error))

    os.environ[FULL_ERROR] = "1"
    try:
        folder = str(config_file(config_name).parent)
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
    lines = [text.splitlines()[0].rstrip(".") for text in texts]
    if any(f"Key '{group}' not in" in text for group in ("experiment", "variant", "ablation") for text in texts):
        lines.append("the first line of such a file must be: # @package _global_")
    return ": ".join(dict.fromkeys(lines))


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


def typed_overrides() -> Iterator[tuple[str, str]]:
    """The overrides of the command line: each as it was typed, and its key."""
    for word in HydraConfig.get().overrides.task:
        yield word, word.lstrip("+~").partition("=")[0]


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


def report_errors(job: Callable[[], Any], debug: bool = False) -> Any:
    """Calls `job`; an error for the user becomes a `JobError` of one sentence, unless `debug` asks for its stack.

    A request to stop ends the process, and with it a sweep, with the exit code that shells give to its signal.
    """
    try:
        return job()
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise_stopped(stopped)
    except Exception as error:
        if debug or not is_for_user(error):
            raise
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        raise JobError(str(error)) from None
