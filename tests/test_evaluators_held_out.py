import numpy as np
import pytest

from atmc_tool.data import load_data
from evaluators.held_out import check_held_out


def test_the_digits_are_kept_apart() -> None:
    data = load_data("digits")
    parts = [data.train.images, data.validation.images]
    check = check_held_out(data.test.images, parts)
    assert check.passed
    assert "0 of 360 images" in check.reason
    assert check.evidence["seen"] == len(data.train) + len(data.validation)


@pytest.mark.parametrize(("copied", "passed"), [(0, True), (1, True), (2, False), (100, False)])
def test_more_than_one_in_a_hundred_fails(copied: int, passed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), np.uint8)
    check = check_held_out(images[:100], [images[150:], images[100 - copied : 150]])
    assert check.passed is passed
    assert check.reason.startswith(f"{copied} of 100 images")


def test_one_pixel_makes_another_image_and_unknown_images_are_not_compared() -> None:
    images = np.zeros((1, 1, 2, 2), np.uint8)
    assert check_held_out(images, [images]).passed is False
    assert check_held_out(images, [images + np.uint8(1)]).passed is True
    assert check_held_out(images, []).passed is None
