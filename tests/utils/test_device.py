"""Which embedding an image's camera gets, and that no image gets another one's."""

from __future__ import annotations

import pytest
import torch

from dcal.utils.device import Device
from dcal.utils.errors import UserError

MEAN, STD = (0.5,) * 3, (0.5,) * 3


def test_without_a_camera_embedding_cameras_do_not_matter() -> None:
    assert Device("cpu", "fp32", MEAN, STD).side_index({"camera": torch.tensor([-1, 99])}) is None


def test_camera_and_view_make_one_index() -> None:
    batch = {"camera": torch.tensor([0, 2]), "view": torch.tensor([1, 0])}
    by_camera, both = (Device("cpu", "fp32", MEAN, STD, 3, views).side_index(batch) for views in (1, 2))
    assert by_camera is not None and both is not None
    assert by_camera.tolist() == [0, 2] and both.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("camera", "view", "message"),
    [
        (-1, 0, "embeds the camera .* knows camera 0 to 2, but 1 images of a batch have none"),
        (3, 0, "have camera 3: it fits only data with the cameras"),
        (17, 0, "have camera 17"),
        (0, -1, "embeds the view .* have none"),
        (0, 2, "have view 2"),
    ],
)
def test_unknown_and_other_cameras_are_refused(camera: int, view: int, message: str) -> None:
    device = Device("cpu", "fp32", MEAN, STD, 3, 2)
    with pytest.raises(UserError, match=message):
        device.side_index({"camera": torch.tensor([1, camera]), "view": torch.tensor([0, view])})
