"""A trained model outside its run: one object with all that using it takes, and one line that brings it back.

`TrainedDCAL` is the model with the names of its classes, its normalisation and its image pipeline. It is built from
plain values (`config.json`), so that nothing a downloaded file says is ever instantiated, and it is a Hugging Face
`PyTorchModelHubMixin`: `save_pretrained`, `from_pretrained` and `push_to_hub` are that library's.

Shapes: B images, C classes, D channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dcal.backbone import create_backbone, normalisation, portable
from dcal.dataset.decode import read_image, rgb_pixels
from dcal.dataset.transform import eval_transform
from dcal.inference.model_card import facts_of, model_card
from dcal.inference.predictor import Predictor
from dcal.inference.restore import Restored, restore
from dcal.inference.trust import DCAL_TARGET, TIMM_VIT, RunError, Trust, without_weights
from dcal.model import DCAL
from dcal.output import Output, combined_probabilities, join_features
from dcal.run.listing import find_run
from dcal.task.inference import NotFinite, Scores, finite
from dcal.utils.device import Device, choose_device
from dcal.utils.errors import UserError, first_line

Picture = Image.Image | NDArray[np.uint8] | str | Path
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class TrainedDCAL(DCAL, PyTorchModelHubMixin):
    """A `DCAL` model with what its use needs. Called like any `DCAL`, on normalised images.

    Args:
        backbone: `name` in timm, and if not timm's defaults `patch_stride`, `kwargs`, `drop_path_rate`. Only the
            architecture is built: nothing is fetched, and no file that is named here is read.
        attention: `glca`, `pwca` and `head_fusion`, as `DCAL` takes them.
        task: `fgvc` or `reid`.
        class_names: by label: the classes, or in Re-ID the identities of the training set.
        image_size: (height, width) of the network's input in pixels.
        resize: (height, width) to which images are resized before `image_size` is cropped from the centre.
        inference: branches that are combined, of `sa` and `glca`.
        bnneck: whether the heads have one.
        sides: number of cameras that are embedded (0: none), and of views of each.
        decode: `full` or `scaled`, how files are decoded, see `dcal.dataset.decode`.
        flip_test: whether `predict` and `embed` average over each picture and its mirror image.
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
        flip_test: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        cameras, views = sides or (0, 1)
        super().__init__(
            create_backbone(image_size=image_size, **without_weights(backbone)),
            len(class_names),
            **attention,
            bnneck=bnneck,
            side_information=cameras * views,
        )
        self.task, self.class_names, self.inference = task, class_names, tuple(inference)
        self.image_size, self.resize = (image_size[0], image_size[1]), (resize[0], resize[1])
        self.flip_test, self.facts = flip_test, facts or {}
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
            UserError: an array of another type or shape.
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
            UserError: the model was trained for re-identification, whose classes are people or vehicles of the
                training set.
        """
        if self.task != "fgvc":
            raise UserError("this model re-identifies: compare what embed(pictures) gives; it predicts no classes")
        predictor = self._predictor()
        ranked = predictor.guesses(predictor.log_probabilities(self._scores(predictor, pictures)), top)
        return [dict(guesses) for guesses in ranked]

    @torch.no_grad()
    def embed(self, pictures: Picture | Sequence[Picture], side: Tensor | None = None) -> Tensor:
        """The features of pictures, of length 1, to be compared by their dot product: (B, D).

        Args:
            pictures: as for `preprocess`.
            side: camera (or camera-view) index of each picture, where the model embeds it.
        """
        predictor = self._predictor()
        return predictor.embedding(self._scores(predictor, pictures, side))

    def _predictor(self) -> Predictor:
        """What answers for the commands, here in float32 on the device that the weights are on."""
        device = Device(self.mean.device.type, "fp32", self.mean.flatten().tolist(), self.std.flatten().tolist())
        return Predictor(self, device, self.class_names, self.inference, self.flip_test, self.image_size, self.resize)

    def _scores(
        self, predictor: Predictor, pictures: Picture | Sequence[Picture], side: Tensor | None = None
    ) -> Scores:
        """The finite answers for pictures.

        Raises:
            NotFinite: the model answers with NaN.
        """
        images = self.normalise(self.preprocess(pictures))
        scores = predictor.scores(images, side)
        if bad := int((~finite(scores)).sum()):
            raise NotFinite(
                f"the model answers with NaN for {bad} of {len(images)} pictures: its weights are of no use"
            )
        return scores

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
            return rgb_pixels(picture, "a PIL image")
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(f"pictures: arrays are uint8 RGB (H, W, 3), not {picture.dtype} {picture.shape}")
        return picture

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> TrainedDCAL:
        # the library's default is to accept a file in which half of the weights are missing
        model: TrainedDCAL = super()._from_pretrained(strict=strict, **options)
        return model.eval()  # which huggingface_hub itself does not do in 0.26


def load(path: str | Path, weights: str = "last", device: str = "auto", trust: bool = False) -> TrainedDCAL:
    """A trained model from disk, ready for inference.

    Args:
        path: a run directory (or `last`, or a run's id, below `outputs`), or a folder that `dcal-export
            format=safetensors` (or `save_pretrained`) wrote. For the Hugging Face Hub:
            `dcal.TrainedDCAL.from_pretrained("user/name")`.
        weights: in a run directory: `last`, `best` or a weight file of the run.
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps`, ...
        trust: whether a run may name code of its own (`_target_`) or a backbone of the hub; say so only of runs whose
            origin you know.

    Raises:
        RunError: there is no such model, or it is not trusted; the message says what was looked for.
        UserError: there is no such device.
    """
    where = choose_device(device)
    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file():
        model = _read_folder(folder)
    else:
        model = of_run(restore(find_run(path, "outputs"), weights, "cpu", trust=Trust(trust)))
    return model.to(where).eval()


def of_run(restored: Restored, licence: str | None = None) -> TrainedDCAL:
    """The model of a run as a `TrainedDCAL`, on the CPU.

    Args:
        licence: of the weights, for the card.
    """
    config = restored.config
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    if plain["backbone"]["_target_"] != TIMM_VIT or plain["attention"]["_target_"] != DCAL_TARGET:
        raise RunError(
            f"run={restored.directory}: its backbone or attention is your own code, which cannot be built "
            "from the names and numbers of an exported configuration"
        )
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
        flip_test=restored.task.flip_test,
        facts={**facts_of(restored, plain), "license": licence},
    )
    model.load_state_dict(restored.model.state_dict())
    return model.eval()


def _read_folder(folder: Path) -> TrainedDCAL:
    file = folder / WEIGHTS
    if not file.is_file():
        raise RunError(f"{folder}: {WEIGHTS} is missing; a model comes back from format=safetensors or format=hub")
    try:
        model = TrainedDCAL(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        model.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError, OSError, UserError) as error:
        reason = first_line(error)
        raise RunError(f"{folder}: {CONFIG} and {WEIGHTS} are not those of a trained model ({reason})") from None
    return model
