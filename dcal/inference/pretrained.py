"""A trained model outside its run: one object with all that using it takes, and one line that brings it back.

`TrainedDCAL` is the model with the names of its classes, its normalisation and its image pipeline. It is built from
plain values (`config.json`), so that nothing a downloaded file says is ever instantiated, and it is a Hugging Face
`PyTorchModelHubMixin`: `save_pretrained`, `from_pretrained` and `push_to_hub` are that library's.

Shapes: B images, C classes, D channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dcal.attention.pairing import Partners
from dcal.backbone import create_backbone, normalisation, portable
from dcal.dataset.decode import read_image
from dcal.dataset.transform import eval_transform
from dcal.inference.model_card import model_card
from dcal.inference.restore import Restored, RunError, read_result, restore
from dcal.model import DCAL
from dcal.output import Output, combined_probabilities, join_features
from dcal.utils.device import Device

Picture = Image.Image | NDArray[np.uint8] | str | Path
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class TrainedDCAL(DCAL, PyTorchModelHubMixin):
    """A `DCAL` model with what its use needs. Called like any `DCAL`, on normalised images.

    Args:
        backbone: `name`, and if not timm's defaults `patch_stride`, `kwargs`, `drop_path_rate`.
        attention: `glca`, `pwca` and `head_fusion`, as `DCAL` takes them.
        task: `fgvc` or `reid`.
        class_names: by label: the classes, or in Re-ID the identities of the training set.
        image_size: (height, width) of the network's input in pixels.
        resize: (height, width) to which images are resized before `image_size` is cropped from the centre.
        inference: branches that are combined, of `sa` and `glca`.
        bnneck: whether the heads have one.
        sides: number of cameras that are embedded (0: none), and of views of each.
        decode: `full` or `scaled`, how files are decoded, see `dcal.dataset.decode`.
        facts: where the model comes from, for its card: `run`, `dataset`, `metrics`, `configuration`, ...
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        attention: dict[str, Any],
        task: str,
        class_names: list[str],
        image_size: list[int],
        resize: list[int],
        inference: list[str],
        bnneck: bool = False,
        sides: list[int] | None = None,
        decode: str = "full",
        facts: dict[str, Any] | None = None,
    ) -> None:
        cameras, views = sides or (0, 1)
        super().__init__(
            create_backbone(image_size=image_size, **backbone),
            len(class_names),
            **attention,
            bnneck=bnneck,
            side_information=cameras * views,
        )
        self.task, self.class_names, self.inference = task, class_names, tuple(inference)
        self.image_size, self.resize = (image_size[0], image_size[1]), (resize[0], resize[1])
        self.facts = facts or {}
        self._transform = eval_transform(image_size, resize)
        self._cover = self.resize if decode == "scaled" else None
        mean, std = normalisation(self.vit)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def preprocess(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Pictures as the model was evaluated on them: resized, cropped, not yet normalised.

        Args:
            pictures: PIL images, uint8 RGB arrays (H, W, 3) or files, one or several.

        Returns:
            float (B, 3, height, width) in [0, 1], on the model's device.

        Raises:
            DataError: a file that is no image.
            ValueError: an array of another type or shape.
        """
        several = [pictures] if isinstance(pictures, (Image.Image, np.ndarray, str, Path)) else pictures
        pixels_BHW3 = np.stack([self._transform(image=self._pixels(picture))["image"] for picture in several])
        return torch.from_numpy(pixels_BHW3).to(self.mean.device).permute(0, 3, 1, 2).float() / 255.0

    def normalise(self, images: Tensor) -> Tensor:
        """Images as the backbone's weights want them, (B, 3, H, W).

        Args:
            images: float in [0, 1], of `image_size`.
        """
        return (images - self.mean) / self.std

    @torch.no_grad()
    def predict(self, pictures: Picture | Sequence[Picture], top: int = 5) -> list[dict[str, float]]:
        """For each picture its most probable classes and their probabilities, most probable first.

        Args:
            pictures: as for `preprocess`.
            top: how many classes; all if there are fewer.

        Raises:
            ValueError: the model was trained for re-identification, whose classes are people or vehicles of the
                training set.
        """
        if self.task != "fgvc":
            raise ValueError("this model re-identifies: compare what embed(pictures) gives; it predicts no classes")
        probabilities = self.probabilities(self(self.normalise(self.preprocess(pictures))))
        best = probabilities.topk(min(top, len(self.class_names)))
        return [
            {self.class_names[label]: value for label, value in zip(labels, values, strict=True)}
            for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @torch.no_grad()
    def embed(self, pictures: Picture | Sequence[Picture], side: Tensor | None = None) -> Tensor:
        """The features of pictures, of length 1, to be compared by their dot product: (B, D).

        Args:
            pictures: as for `preprocess`.
            side: camera (or camera-view) index of each picture, where the model embeds it.
        """
        return self.embedding(self(self.normalise(self.preprocess(pictures)), side=side))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        partners: Partners | None = None,
        side: Tensor | None = None,
    ) -> Output:
        """As `DCAL.forward`.

        Args:
            images: normalised, (B, 3, H, W).
            labels: as for `DCAL.forward`.
            partners: as for `DCAL.forward`.
            side: as for `DCAL.forward`.

        Raises:
            ValueError: the model embeds cameras and is not told which.
        """
        if self.side is not None and side is None:
            raise ValueError("this model embeds cameras (task.side_information): give side=, one index per image")
        return super().forward(images, labels, partners, side)

    def probabilities(self, output: Output) -> Tensor:
        """Class probabilities of the branches that `inference` names, averaged: (B, C).

        Args:
            output: of this model.
        """
        return combined_probabilities([output.logits()[branch] for branch in self.inference])

    def embedding(self, output: Output) -> Tensor:
        """Features of the branches that `inference` names, joined: (B, D) or (B, 2 D), of length 1.

        Args:
            output: of this model.
        """
        return join_features([getattr(output.features, branch) for branch in self.inference])

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` add; overrides the library's template.

        Args:
            args, kwargs: of the library; unused.
        """
        return ModelCard(model_card(self.config))

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds: the arguments that this model was made with."""
        return dict(self._hub_mixin_config or {})  # type: ignore[arg-type]  # a mapping, as no dataclass is given

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        if isinstance(picture, (str, Path)):
            return read_image(Path(picture), self._cover)
        if isinstance(picture, Image.Image):
            return np.array(picture.convert("RGB"))
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise ValueError(f"pictures: arrays are uint8 RGB (H, W, 3), not {picture.dtype} {picture.shape}")
        return picture

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> TrainedDCAL:
        # the library's default is to accept a file in which half of the weights are missing
        return super()._from_pretrained(strict=strict, **options)


def load(path: str | Path, weights: str = "last", device: str = "auto") -> TrainedDCAL:
    """A trained model from where it lies on disk, ready for inference.

    Args:
        path: a run directory, or a folder that `dcal-export format=safetensors` (or `save_pretrained`) wrote. For the
            Hugging Face Hub: `dcal.TrainedDCAL.from_pretrained("user/name")`.
        weights: in a run directory: `last`, `best` or a weight file of the run.
        device: `auto` (CUDA if there is one), `cpu` or `cuda`.

    Raises:
        RunError: there is no such model; the message says what was looked for.
        ValueError: unknown device, CUDA without a GPU.
    """
    folder = Path(path).expanduser()
    exported = (folder / CONFIG).is_file()
    model = _read_folder(folder) if exported else of_run(restore(folder, weights, "cpu"))
    return model.to(Device(device, "fp32", (0.0,), (1.0,)).torch).eval()


def of_run(restored: Restored, licence: str | None = None) -> TrainedDCAL:
    """The model of a run as a `TrainedDCAL`, on the CPU.

    Args:
        licence: of the weights, for the card.
    """
    config = restored.config
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    backbone = {key: plain["backbone"][key] for key in ("patch_stride", "drop_path_rate")}
    backbone["name"], backbone["kwargs"] = portable(
        restored.model.vit, plain["backbone"]["name"], plain["backbone"]["kwargs"]
    )
    model = TrainedDCAL(
        backbone=backbone,
        attention={key: plain["attention"][key] for key in ("glca", "pwca", "head_fusion")},
        task=restored.task.name,
        class_names=list(restored.class_names),
        image_size=plain["dataset"]["image_size"],
        resize=plain["dataset"]["resize"],
        inference=[branch for branch in plain["task"]["inference"] if branch in restored.model.branches],
        bnneck=restored.task.bnneck,
        sides=[restored.device.num_cameras, restored.device.num_views],
        decode=plain["dataset"]["decode"],
        facts={**facts_of(restored, plain), "license": licence},
    )
    model.load_state_dict(restored.model.state_dict())
    return model.eval()


def facts_of(restored: Restored, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What the card tells of a run. Folders of this machine are left out."""
    hidden = ("_target_", "_partial_", "reader", "root", "cache")
    groups = {
        group: {key: value for key, value in plain[group].items() if key not in hidden}
        for group in ("backbone", "attention", "task", "dataset", "optimizer", "train")
    }
    config: DictConfig = OmegaConf.load(restored.directory / "config_resolved.yaml")  # type: ignore[assignment]
    start = config.backbone.checkpoint
    groups["backbone"] |= {"pretrained": config.backbone.pretrained, "checkpoint": start and PurePath(start).name}
    result = read_result(restored.directory) or {}
    return {
        "run": plain["name"],
        "seed": plain["seed"],
        "weights": restored.weights.name,
        "dataset": str(plain["dataset"]["reader"]["_target_"]).rpartition(".")[2].removeprefix("read_"),
        "flip_test": plain["task"]["flip_test"],
        **{key: result[key] for key in ("cfg_id", "split", "headline", "metrics", "git") if key in result},
        "configuration": groups,
    }


def _read_folder(folder: Path) -> TrainedDCAL:
    file = folder / WEIGHTS
    if not file.is_file():
        raise RunError(f"{folder}: {WEIGHTS} is missing; a model comes back from format=safetensors or format=hub")
    try:
        model = TrainedDCAL(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        model.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{folder}: {CONFIG} and {WEIGHTS} are not those of a trained model ({reason})") from None
    return model
