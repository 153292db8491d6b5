"""Pictures that a vision tower is judged on: read as they are, normalised as the checkpoint says, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatenorm_export.comparing.images import load_images
from gatenorm_export.errors import InputError

image = pytest.importorskip("PIL.Image")


def a_folder(place: Path, picture: Any, config: object = None) -> Path:
    """A folder with the same picture three times, and beside it what the checkpoint says of pictures."""
    (place / "pictures").mkdir()
    for number in range(3):
        picture.save(place / "pictures" / f"{number}.png")
    if config is not None:
        (place / "preprocessor_config.json").write_text(json.dumps(config))
    return place / "pictures"


def test_pictures_are_normalised_as_the_checkpoint_says(tmp_path: Path) -> None:
    config = {"image_mean": [0.5, 0.25, 0.1], "image_std": [0.5, 0.5, 0.1]}
    pictures = a_folder(tmp_path, image.new("RGB", (8, 4), (255, 0, 51)), config)
    found = load_images(pictures, (3, 16, 16), tmp_path, None)
    assert found.pixels[0].shape == (3, 16, 16)
    assert found.pixels[0][:, 5, 5] == pytest.approx([1.0, -0.5, 1.0])


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_what_is_no_picture_is_refused(cut: int, tmp_path: Path) -> None:
    pictures = a_folder(tmp_path, image.new("RGB", (8, 4)))
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"0\.png: not a readable picture"):
        load_images(pictures, (3, 16, 16), tmp_path, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_keeps_its_shades(channels: int, tmp_path: Path) -> None:
    grey = np.repeat(np.array([[0, 257 * 51, 257 * 102, 65535]], np.uint16), 4, axis=0)
    pictures = a_folder(tmp_path, image.fromarray(grey))
    found = load_images(pictures, (channels, 4, 4), tmp_path, None).pixels[0]
    assert found[:, 2] == pytest.approx(np.tile([-1.0, -0.6, -0.2, 1.0], (channels, 1)), abs=1e-6)


@pytest.mark.parametrize(
    ("channels", "config", "complaint"),
    [
        (3, {"image_mean": [0.4, 0.5]}, "image_mean has 2 numbers, the model takes images of 3 channels"),
        (1, {"image_mean": [0.4, 0.5, 0.6]}, "image_mean has 3 numbers, the model takes images of 1 channels"),
        (3, {"image_std": []}, "image_std has 0 numbers"),
        (3, {"image_std": 0}, "image_std is 0; a deviation is above 0"),
        (3, {"image_std": [0.2, 0.2, -1]}, r"image_std is \[0.2, 0.2, -1\]; a deviation is above 0"),
        (3, {"image_std": None}, "image_std is null; it takes a number"),
        (3, {"image_mean": "half"}, 'image_mean is "half"; it takes a number'),
        (3, {"image_mean": [float("nan")] * 3}, r"image_mean is \[NaN, NaN, NaN\]; it takes a number"),
        (3, {"image_mean": [[0.5]]}, "image_mean is .* it takes a number, or one for each channel"),
        (3, [0.5], "not a JSON object"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_named(
    channels: int, config: object, complaint: str, tmp_path: Path
) -> None:
    pictures = a_folder(tmp_path, image.new("RGB", (8, 4)), config)
    with pytest.raises(InputError, match=f"preprocessor_config.json: ({complaint})"):
        load_images(pictures, (channels, 16, 16), tmp_path, None)


def test_arrays_are_what_the_model_takes_whatever_the_config_says(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": 0}')
    (tmp_path / "arrays").mkdir()
    array = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    for name in ("0.npy", "1.npy", "2.NPY"):
        with (tmp_path / "arrays" / name).open("wb") as file:
            np.save(file, array)
    found = load_images(tmp_path / "arrays", (3, 4, 4), tmp_path, None)
    assert all((pixels == array).all() for pixels in found.pixels)
