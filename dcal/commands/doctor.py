"""`dcal-doctor`: is everything there that a run needs, and what is the state of a run?

    dcal-doctor                                     this machine and the defaults
    dcal-doctor experiment=fgvc/cub100_deit_tiny dataset.root=CUB backbone.checkpoint=WEIGHTS
                                                    what `dcal-train` with the same words needs
    dcal-doctor run=outputs/synthetic_birds/1a2b3c4d/seed=0
                                                    one run: finished, running, interrupted or failed, and is it whole

Every line says OK, WARN or FAIL, and what to do; the exit code is 1 if one says FAIL.
"""
# A check imports what it needs itself, so that a package that is missing or broken is a finding of that check.

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from omegaconf import DictConfig
from packaging.requirements import Requirement

from dcal.inference.run_status import FAIL, OK, WARN, Finding, state, weights
from dcal.run.directory import Run
from dcal.run.listing import find_run
from dcal.run.provenance import git_state
from dcal.utils.errors import is_for_user
from dcal.utils.streams import quiet

GIB = 1024**3

Check = Callable[[], Iterable[Finding]]


def doctor(config: DictConfig) -> None:
    """All checks of a configuration.

    Raises:
        SystemExit: 1 if one fails.
    """
    checks: list[tuple[str, Check]] = [
        ("install", installation),
        ("device", lambda: device(config)),
        ("precision", lambda: precision(config)),
        ("data", lambda: dataset(config)),
        ("model", lambda: model(config)),
        ("settings", lambda: settings(config)),
        ("workers", lambda: workers(config)),
        ("wandb", lambda: wandb_access(config)),
        ("disk", lambda: disk(config)),
    ]
    with quiet("dcal.dataset.data"):  # its notes are findings here
        code = run_checks(checks)
    if code:
        raise SystemExit(code)


def examine_run(spec: str, root: str, trusted: bool, folders: Sequence[Path]) -> None:
    """The state of one run.

    Args:
        spec, root: the run and the folder of runs, as `find_run` takes them.
        trusted: the user vouches for whatever code the run names.
        folders: of the user's own YAML files, whose targets count as ours.

    Raises:
        SystemExit: 0, or 1 if a check fails.
    """
    from dcal.inference.trust import Trust

    trust = Trust(trusted, tuple(folders))
    checks: list[tuple[str, Check]] = [
        ("run", lambda: state(find_run(spec, root), trust)),
        ("weights", lambda: weights(find_run(spec, root), trust)),
    ]
    raise SystemExit(run_checks(checks))


def run_checks(checks: Iterable[tuple[str, Check]]) -> int:
    """Runs the checks, prints what each finds, and returns the exit code.

    What a check raises is a finding, too: a sentence if the user can correct it, else its stack, on stderr.
    """
    levels = []
    told: set[str] = set()
    for topic, check in checks:
        try:
            found = list(check())
        except Exception as error:
            found = [raised(topic, error)]
        for finding in found:
            if finding.text in told:  # an earlier check has met with it
                continue
            told.add(finding.text)
            print(f"{finding.level:<4}  {finding.topic:<10}  {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':18}→ {finding.remedy}")
            levels.append(finding.level)
    print(", ".join(f"{levels.count(level)} {level}" for level in (OK, WARN, FAIL) if level in levels))
    return int(FAIL in levels)


def raised(topic: str, error: Exception) -> Finding:
    """What a check that did not come to its end has found."""
    if is_for_user(error) or isinstance(error, ImportError):  # the latter of a package that is missing or broken
        return Finding(FAIL, topic, str(error))
    traceback.print_exception(error)
    text = f"this check itself failed: {type(error).__name__}: {error}"
    return Finding(FAIL, topic, text, "a fault of dcal or of a package that it uses: its stack is on stderr")


def installation() -> Iterator[Finding]:
    """Python, the required packages in their ranges, and which code runs."""
    yield Finding(OK, "python", f"{platform.python_version()} at {sys.executable}")
    try:
        required = [Requirement(text) for text in requires("dcal") or ()]
    except PackageNotFoundError:
        yield Finding(WARN, "install", "dcal runs from a folder and is not installed", "pip install -e . there")
        required = []
    wanted = [requirement for requirement in required if requirement.marker is None]
    shown = ("torch", "timm", "hydra-core", "wandb", "albumentations")
    found: dict[str, str] = {}
    for name in (*shown, *(requirement.name for requirement in wanted)):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    for requirement in wanted:
        name = requirement.name
        if name not in found:
            yield Finding(FAIL, "install", f"{name} is missing", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found[name], prereleases=True):
            text = f"{name} is {found[name]}, not {requirement.specifier}"
            yield Finding(FAIL, "install", text, f"pip install '{requirement}'")
    yield Finding(OK, "install", ", ".join(f"{name} {found[name]}" for name in shown if name in found))
    git = git_state()
    if git["commit"]:
        changed = ", with changes that are not committed" if git["dirty"] else ""
        yield Finding(OK, "code", f"commit {git['commit'][:8]}{changed}")


def device(config: DictConfig) -> Iterator[Finding]:
    """The hardware that a run would use."""
    import torch

    from dcal.training.execution.mode import execution_mode
    from dcal.utils.accelerator import device_memory, device_name
    from dcal.utils.device import Device

    where = Device(config.device, config.train.precision, (0.0,) * 3, (1.0,) * 3).torch
    if where.type != "cpu":
        memory = device_memory(where)
        room = f", {memory.free / GIB:.0f} of {memory.total / GIB:.0f} GiB free" if memory else ""
        yield Finding(OK, "device", f"{device_name(where)}{room}")
        return
    yield Finding(OK, "device", f"CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if config.device == "auto" and shutil.which("nvidia-smi"):
        built = torch.version.cuda
        why = f"its driver is too old for CUDA {built}, or broken" if built else "this torch is built for the CPU"
        yield Finding(WARN, "device", f"nvidia-smi is here, but torch sees no GPU: {why}", "see docs/install.md")
    compiled = execution_mode(config.train.compile, where) == "compile"
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        yield Finding(
            FAIL, "device", "train.compile=compile needs a C++ compiler", "install g++, or train.compile=none"
        )


def precision(config: DictConfig) -> Iterator[Finding]:
    """Is the chosen precision faster than fp32 here?"""
    import torch

    from dcal.bench.measure import interleaved_medians
    from dcal.utils.device import Device

    where, name = Device(config.device, config.train.precision, (0.0,) * 3, (1.0,) * 3), config.train.precision
    if where.dtype is None:
        yield Finding(OK, "precision", name)
        return
    exact = torch.randn(768, 768, device=where.torch)
    short = exact.to(where.dtype)
    times = interleaved_medians({"fp32": lambda: exact @ exact, name: lambda: short @ short}, 5, 0.01, where.torch)
    ratio = times["fp32"] / times[name]
    if ratio < 1:
        yield Finding(
            WARN, "precision", f"matrix products in {name} are {1 / ratio:.1f} times slower than in fp32",
            "train.precision=fp32",
        )  # fmt: skip
    else:
        yield Finding(OK, "precision", f"matrix products in {name} are {ratio:.1f} times faster than in fp32")


def dataset(config: DictConfig) -> Iterator[Finding]:
    """The checks that a training run makes, what was read, and one image of each split."""
    from dcal.training.build import make

    data = make(config.dataset)
    catalog = data.catalog
    yield Finding(OK, "data", data.describe())
    for note in data.notes:
        yield Finding(WARN, "data", note)
    for split in catalog.splits:
        data.image(split, 0)


def model(config: DictConfig) -> Iterator[Finding]:
    """The backbone with its weights at the image size of the configuration."""
    from dcal.training.build import make

    height, width = config.dataset.image_size
    vit = make(config.backbone)(image_size=(height, width))
    millions = sum(parameter.numel() for parameter in vit.parameters()) / 1e6
    backbone = config.backbone
    hub = "weights from timm's hub" if backbone.pretrained else "from scratch"
    origin = f"weights from {backbone.checkpoint}" if backbone.checkpoint else hub
    yield Finding(OK, "model", f"{backbone.name} at {height}×{width}, {millions:.1f} M parameters, {origin}")


def settings(config: DictConfig) -> Iterator[Finding]:
    """Can the configured run be built: branches, losses, batches and optimizer as they are configured?"""
    from dcal.training.build import build

    state = build(config)
    yield Finding(OK, "settings", f"{len(state.loader)} batches of {config.train.batch_size} images in an epoch")


def workers(config: DictConfig) -> Iterator[Finding]:
    """Enough cores and shared memory for the processes that load images?"""
    count, cores = config.train.workers, os.cpu_count() or 1
    if count > cores:
        yield Finding(WARN, "workers", f"train.workers={count} on {cores} cores", f"train.workers={cores}")
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free / GIB if shared.is_dir() else None
    if count and free is not None and free < 0.5:
        yield Finding(
            WARN, "workers", f"only {free:.2f} GiB of shared memory: workers may die of a bus error",
            "docker run --shm-size=2g, or train.workers=0",
        )  # fmt: skip
    elif count <= cores:
        yield Finding(OK, "workers", f"train.workers={count} on {cores} cores")


def wandb_access(config: DictConfig) -> Iterator[Finding]:
    """The mode, and for an online one the key and the server."""
    import wandb

    mode = config.wandb.mode
    if mode != "online":
        note = "; `make sync` uploads them" if mode == "offline" else ""
        yield Finding(OK, "wandb", f"wandb.mode={mode}{note}")
        return
    # W&B reads its environment once per process
    url = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url)
    if not _has_key(url.hostname or ""):
        yield Finding(FAIL, "wandb", "wandb.mode=online, but there is no key", "wandb login, or wandb.mode=offline")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=5).close()
    except OSError as error:
        yield Finding(
            WARN, "wandb", f"{url.geturl()} cannot be reached ({error}): the run would be logged offline",
            "wandb.mode=offline spares the waiting",
        )  # fmt: skip
        return
    yield Finding(OK, "wandb", f"wandb.mode=online at {url.geturl()}")


def _has_key(host: str) -> bool:
    """Where W&B looks for a key: the environment, then what `wandb login` has written."""
    try:
        return bool(os.environ.get("WANDB_API_KEY")) or netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def disk(config: DictConfig) -> Iterator[Finding]:
    """Is there room for a run where runs go, and may one write there?"""
    from dcal.training.build import make

    root = Run(config).directory
    folder = next(parent for parent in (root, *root.parents) if parent.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding(FAIL, "disk", f"run.root={config.run.root}: {folder} is read-only", "run.root=another folder")
        return
    bare = config.backbone.copy()
    bare.checkpoint, bare.pretrained = None, False
    vit = make(bare)(image_size=tuple(config.dataset.image_size))
    parameters = sum(parameter.numel() for parameter in vit.parameters()) * 1.2  # and the branches
    copies = 3 * 4 + 3  # three checkpoints at the worst moment: weights, two moments, average; last, best, one in work
    need, free = 4 * copies * parameters / GIB, shutil.disk_usage(folder).free / GIB
    text = f"{free:.1f} GiB free at {folder}; a run needs about {need:.1f}"
    level = FAIL if free < need else WARN if free < 5 * need else OK
    yield Finding(
        level, "disk", text, "" if level == OK else "run.root=another disk, or delete checkpoints/ of old runs"
    )
