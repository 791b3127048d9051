"""docs/datasets.md: from the comments in conf/dataset/ and the counts that the readers know."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from hydra import compose, initialize_config_dir

from dcal.dataset.readers import fgvc, fgvc_mat, reid_vehicle
from dcal.dataset.readers import reid_person as reid
from dcal.dataset.readers.reid_protocol import CAMERA_POLICY, JUNK_POLICY, Counts
from dcal.utils.paths import config_dir

IMAGES: dict[str, Mapping[str, int]] = {
    "cub": fgvc.CUB_IMAGES,
    "nabirds": fgvc.NABIRDS_IMAGES,
    "aircraft": fgvc.AIRCRAFT_IMAGES,
    "cars": fgvc_mat.CARS_IMAGES,
    "dogs": fgvc_mat.DOGS_IMAGES,
    "flowers": fgvc_mat.FLOWERS_IMAGES,
    "pets": fgvc_mat.PETS_IMAGES,
}
PROTOCOLS: dict[str, Mapping[str, Counts]] = {
    "market1501": reid.MARKET1501,
    "msmt17": {"train": reid.MSMT17_TRAIN["train+val"], **reid.MSMT17_TEST},
    "dukemtmc": reid.DUKEMTMC,
    "occluded_duke": reid.OCCLUDED_DUKE,
    "veri": reid_vehicle.VERI,
}
KINDS = {
    "Fine-grained classification": "cub nabirds aircraft cars dogs flowers pets",
    "Persons and vehicles": "market1501 msmt17 dukemtmc occluded_duke veri vehicleid",
    "Your own images": "image_folder csv identity_folder identity_csv metadata",
    "Drawn by the program": "synthetic_birds synthetic_people",
    "Several in one run": "joint",
}
JOINT = """\
```console
$ dcal-train dataset=joint task=reid dataset.members.market1501.root=MARKET dataset.members.msmt17.root=MSMT17 \\
    dataset.members.msmt17.val_ids=100 dataset.members.market1501.val_ids=100 dataset.batches=balanced
```

A person, a class or a camera of one member is never one of another, whatever its name; classes are called
`market1501/0002`. `dataset.batches=proportional` draws every training image once an epoch, so that a large member comes
more often; `balanced` takes as many identities (or images) of each member into every batch, for which a small one is
gone through several times and a large one in part, in as many batches. Which images make up a batch depends neither on
workers nor on processes, and an interrupted run continues in the same batch.

Each member is judged by itself: its queries are searched for in its own gallery; a classifier chooses among the classes
of all. `market1501/mAP` is the figure of a member. `mAP` (or `top1`) without a name is the mean over the queries
(images) of all members, so that a large member counts for more. By it the best weights are chosen and runs are
compared, with intervals and paired tests. The run's id depends on each member as it would on that set alone.

`dcal-evaluate run=DIR` gives the figures of all members, `member=market1501` those of one, with `reliability=true` if
asked; `dcal-calibrate` needs `member=`, since a threshold is for images like those it was found on. Where a member has
moved: `dataset.members.market1501.root=FOLDER`. `datasets=[...]` evaluates on other sets, as for any run. In an
experiment's file:

```yaml
defaults:
  - override /dataset: joint
dataset:
  image_size: [256, 128]
  members:
    market1501: {root: /data/Market-1501-v15.09.15}
    msmt17: {root: /data/MSMT17_V2, reader: {version: V2}}
```

A warning counts test images of one member that another one trains on, as DukeMTMC-reID and Occluded-Duke share images.
"""
INTRODUCTION = f"""\
# Data sets

Written from the comments in [conf/dataset/](../conf/dataset) and the readers' tables by
`python -m docs.generate datasets`; do not edit.

`dataset=NAME dataset.root=FOLDER` reads a set in the layout of its official download. Nothing is downloaded. A
reader takes splits and labels from the set's own files and sorts what a file system lists, so that labels are
the same on every machine. What is missing or malformed is one sentence that names the file, the key and the
remedy.

**Images.** Files of any size and colour mode that Pillow reads become RGB: grey is repeated, alpha and the lower
8 of 16 bits are dropped. An orientation in the EXIF data is ignored, as torchvision's and timm's loaders do: turn
the pixels themselves of pictures from a telephone. Hidden files and folders are passed over.

**Counts.** A run logs how many images it read, and how many there should be. Classification sets may be
subsets. The known re-identification sets are compared with the official counts, and refused if they differ,
since figures would not compare: `dataset.allow_mismatch=true` reads them all the same, with a warning.

**Checks.** Before a run starts, and in `dcal-doctor`, every listed file is looked for: one that is missing, or that is
a folder, a device or a pipe, is refused by name. A warning counts test images that are also training images (the same
file or the same bytes, under whatever name), images with two labels, images that a test split has twice, and identities
of both training and test. Readers of folders follow links, but no folder twice, and say what they pass over: hidden
files, dangling links, files of no image type, and classes that have no image left.

**Names.** A class name in two Unicode forms (as macOS and Linux write `é`) is one class. Bytes of a file name that are
not UTF-8 are shown as `\\xff`. Ids and cameras that a spreadsheet wrote as `12.0` are read as 12.

**Queries in the gallery.** A query's own picture (the same file or the same bytes) is never its match, with or without
cameras; a warning counts such queries.

**Junk and cameras.** {JUNK_POLICY[0].upper()}{JUNK_POLICY[1:]}. {CAMERA_POLICY[0].upper()}{CAMERA_POLICY[1:]}.
Labels of `train` count from 0; those of `query` and `gallery` are the set's own.

**Keys of every set.** `image_size` and `resize` are [height, width]; training crops `image_size` at random from
the resized image, evaluation from its centre. `augment.flip` and `augment.erase` are probabilities,
`augment.pad` is in pixels. `test_fraction` splits a folder of classes (`image_folder`) into training and test, always
in the same way. `val_fraction` (classification) and `val_ids` (re-identification) hold out training
data, `train_fraction` keeps a part of each class, `label_noise` gives that share of the training images a wrong
label, always the same one. `cache=ram` or `disk` decodes and resizes every image once, `decode=scaled` decodes large
JPEGs at a fraction of their size: faster, a few grey levels off, and so another run. `on_bad_image=skip` goes on
without damaged files. A set of your own is a reader and a YAML file, see the
[tutorial](tutorial.md#a-data-set-of-your-own).
"""


def spaced(number: int) -> str:
    """12 936, as the comments have it."""
    return f"{number:,}".replace(",", " ")


def head(name: str) -> list[str]:
    """The comment at the top of a set's file: what it is, and what its root holds."""
    text = (config_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r" (?=dataset\.root: )", " ".join(line.removeprefix("#").strip() for line in lines))


def options(name: str) -> list[str]:
    """The reader's own keys, with their defaults and comments."""
    text = (config_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8")
    block = re.search(r"^reader:\n((?:  .*\n)+)", text, re.MULTILINE)
    found = re.findall(r"^  (\w+): (.*?)(?: +# (.*))?$", block[1], re.MULTILINE) if block else []
    kept = [entry for entry in found if entry[0] != "_target_" and "${" not in entry[1]]  # those are keys of every set
    return [f"- `dataset.reader.{key}={value}`{f': {words}' if words else ''}" for key, value, words in kept]


def counts(name: str) -> list[str]:
    if name in IMAGES:
        rows = [f"| {split} | {spaced(number)} |" for split, number in IMAGES[name].items()]
        return ["| split | images |", "|---|---|", *rows, ""]
    if name in PROTOCOLS:
        cells = {split: [spaced(number or 0) for number in row] for split, row in PROTOCOLS[name].items()}
        rows = [f"| {split} | {' | '.join(row)} |" for split, row in cells.items()]
        return ["| split | identities | images | cameras |", "|---|---|---|---|", *rows, ""]
    return []


def section(name: str) -> str:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(f"dataset/{name}").dataset
    if "image_size" not in config:  # those of its members
        return "\n".join([f"### {name}", "", *(f"{paragraph}\n" for paragraph in head(name)), JOINT])
    sizes = f"Sizes: `image_size={config.image_size}`, `resize={config.resize}`; "
    augment = ", ".join(f"`{key}={value}`" for key, value in config.augment.items())
    paragraphs = [
        paragraph.replace("dataset.root:", "`dataset.root`:").replace("<", "&lt;") + "\n" for paragraph in head(name)
    ]
    own = [*options(name), ""] if options(name) else []
    return "\n".join([f"### {name}", "", *paragraphs, *counts(name), *own, f"{sizes}augmentation: {augment}.", ""])


def page() -> str:
    parts = [INTRODUCTION]
    for kind, names in KINDS.items():
        parts += [f"## {kind}\n", *(section(name) for name in names.split())]
    return "\n".join(parts)
