"""Options of a task: none without effect, none out of its range; and inference over views and branches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from dcal.config import register
from dcal.dataset.joint import Joint
from dcal.output import Branches, Output
from dcal.task.evaluation import Evaluation, pool
from dcal.task.inference import combined_scores, infer
from dcal.training.build import check_train, make
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("fgvc", {"rerank": True}, r"task\.rerank=true .* needs task=reid"),
        ("fgvc", {"metric": "euclidean"}, r"task\.metric=euclidean .* needs task=reid"),
        ("fgvc", {"side_information": "camera"}, r"task\.side_information=camera .* needs task=reid"),
        ("fgvc", {"triplet": {"weight": 1.0}}, r"task\.triplet\.weight .* set task\.instances=2"),
        ("fgvc", {"mixup": -0.5}, r"task\.mixup=-0\.5: must be at least 0; 0 is off"),
        ("fgvc", {"instances": 0}, r"task\.instances=0: must be at least 1"),
        ("fgvc", {"inference": ["pwca"]}, r"task\.inference=\['pwca'\]: choose from sa, glca"),
        ("fgvc", {"inference": ["sa", "sa"]}, r"task\.inference=\['sa', 'sa'\]: names a branch twice"),
        ("reid", {"cutmix": 1.0}, r"task\.mixup and task\.cutmix .* need task=fgvc"),
        ("reid", {"metric": "manhattan"}, r"task\.metric='manhattan': choose one of cosine, euclidean"),
        ("reid", {"side_information": "place"}, r"task\.side_information='place': choose one of none, camera"),
    ],
)
def test_options_without_effect_are_refused(task: str, options: dict[str, Any], message: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(f"task/{task}").task
    make(config)
    with pytest.raises(UserError, match=message):
        make(OmegaConf.merge(config, options))


class Sums(nn.Module):
    """Logits 0 and `scale` times the sum of the leftmost column; of GLCA twice that."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor, side: None) -> Output:
        left = self.scale * images[..., 0].sum((1, 2))
        sa, glca = (torch.stack([torch.zeros_like(left), factor * left], 1) for factor in (1, 2))
        return Output(sa, glca, None, Branches(sa, glca), None)


def test_probabilities_are_averaged_over_views_and_branches_and_do_not_underflow() -> None:
    device = Device("cpu", "fp32", [0.0] * 3, [1.0] * 3)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[0, 0, 0, 0] = images[1, 0, 2, 3] = 255  # the mirror image of the one is like the other, but for the row
    batch = {"image": images, "label": torch.tensor([0, 1]), "camera": torch.tensor([0, 0]), "index": torch.arange(2)}
    seen = infer(Sums(2.0), [batch], device, flip=True)  # type: ignore[arg-type]
    wanted = [torch.tensor([[0.0, value], [0.0, 0.0]]).softmax(1).mean(0) for value in (2.0, 4.0)]
    for branch, probabilities in zip(("sa", "glca"), wanted, strict=True):
        torch.testing.assert_close(seen.logits[branch].exp(), probabilities.expand(2, 2))
    torch.testing.assert_close(combined_scores(seen.logits, ["sa", "glca"]).exp()[0], torch.stack(wanted).mean(0))
    sure = infer(Sums(1000.0), [batch], device, flip=False)  # type: ignore[arg-type]
    assert sure.logits["sa"][0].tolist() == [-1000.0, 0.0], "not -inf"


def test_mixup_needs_pairs() -> None:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", ["name=test", "task.cutmix=1.0", "train.batch_size=15"])
    with pytest.raises(UserError, match=r"train\.batch_size=15: task\.mixup and task\.cutmix blend pairs"):
        check_train(config)


def test_members_whose_galleries_are_smaller_than_a_list_are_joined() -> None:
    sizes = {"one": 12, "two": 3}
    data = Joint.__new__(Joint)
    data.members = {
        name: SimpleNamespace(catalog=SimpleNamespace(splits={"query": range(2), "gallery": range(size)}))
        for name, size in sizes.items()
    }  # type: ignore[misc]
    found = {
        name: Evaluation({}, {"index": torch.arange(2), "nearest": torch.arange(min(size, 10)).repeat(2, 1)})
        for name, size in sizes.items()
    }
    items = pool(data, found, ("query", "gallery")).items
    assert items["index"].tolist() == [0, 1, 2, 3]
    assert items["nearest"].tolist() == [[0, 1, 2], [0, 1, 2], [12, 13, 14], [12, 13, 14]]
