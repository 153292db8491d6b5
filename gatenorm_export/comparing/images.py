"""The images that a vision tower is judged on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.errors import InputError, needs
from gatenorm_export.records import ModelSpec
from gatenorm_export.small_files import read_object

SYNTHETIC = 64
_SUFFIXES = {".npy", ".png", ".jpg", ".jpeg"}
_CONFIG, _KEYS = "preprocessor_config.json", ("image_mean", "image_std")
_LARGEST = 1e6
"""More than any mean or deviation of pixels; beyond it float32 would soon be infinite."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as the model takes them, float32 [channels, height, width] each, and their identity."""

    name: str
    sha256: str
    pixels: tuple[np.ndarray, ...]


def load_images(folder: Path | None, shape: tuple[int, int, int], graph_folder: Path, spec: ModelSpec | None) -> Images:
    """Read every .npy, .png and .jpg of a folder, or make seeded synthetic images of ``shape``.

    A .npy file holds what the model takes, float [channels, height, width]. Pictures are resized to the model's size,
    without cropping, and normalised with the mean and deviation of preprocessor_config.json (0.5 without one). Grey
    with 16 bits a pixel is scaled to 8, as they all have.

    Raises:
        InputError: the folder holds no image, one cannot be read or has another shape, or the preprocessor config's
            mean or deviation does not fit the model.
        MissingPartError: there is a picture and Pillow is not installed.
    """
    if folder is None:
        pixels = synthetic_images(SYNTHETIC, shape)
        name = f"{SYNTHETIC} synthetic images (coloured gradients, discs and noise, seed 0)"
        return Images(name, hashlib.sha256(np.stack(pixels).tobytes()).hexdigest(), pixels)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --images names a folder of .npy, .png or .jpg files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < 3:
        raise InputError(f"{folder}: holds {len(files)} .npy, .png or .jpg files; at least 3 images are needed")
    digest = hashlib.sha256()
    read = []
    arrays = {path for path in files if path.suffix.lower() == ".npy"}
    norm = _normalisation(graph_folder, spec, shape[0]) if len(arrays) < len(files) else ()
    for path in files:
        read.append(_array(path, shape) if path in arrays else _picture(path, shape, *norm))
        digest.update(path.read_bytes())
    return Images(f"{len(files)} images of {folder.name}", digest.hexdigest(), tuple(read))


def synthetic_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Images with structure at several scales: a gradient of colours, a disc, and noise on top, about unit variance.

    A model that has never seen such images still tells them apart, which noise alone would not let it.
    """
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    images = []
    for _ in range(count):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
        across, down = rng.uniform(-0.5, 0.5, size=2)
        gradient = np.cos(angle) * columns + np.sin(angle) * rows
        disc = (columns - across) ** 2 + (rows - down) ** 2 < radius**2
        colours = rng.normal(size=(3, channels, 1, 1))
        image = colours[0] * gradient + colours[1] * disc + 0.3 * rng.normal(size=shape) + 0.3 * colours[2]
        images.append(image.astype(np.float32))
    return tuple(images)


def _array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from error
    if array.shape != shape or array.dtype.kind != "f":
        raise InputError(f"{path}: holds {array.dtype} {list(array.shape)}, the model takes floats {list(shape)}")
    return np.asarray(array, np.float32)


def _picture(path: Path, shape: tuple[int, int, int], mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    with needs("images", f"{path}: reading pictures"):
        from PIL import Image
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            resized = _eight_bits(picture).convert("RGB" if shape[0] == 3 else "L").resize((shape[2], shape[1]))
            pixels = np.asarray(resized, np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error
    pixels = pixels.reshape(shape[1], shape[2], shape[0])
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1), np.float32)


def _eight_bits(picture: Any) -> Any:
    """Grey with 16 bits a pixel as grey with 8; Pillow's own conversion makes white of all above 255."""
    from PIL import Image

    # A 16-bit PNG opens as "I" in older versions of Pillow, as "I;16" in newer ones.
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray(((np.asarray(picture, np.int64) + 128) // 257).astype(np.uint8))


def _normalisation(graph_folder: Path, spec: ModelSpec | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    folders = [graph_folder, *([Path(spec.path)] if spec is not None else [])]
    file = next((folder / _CONFIG for folder in folders if (folder / _CONFIG).is_file()), None)
    config = read_object(file) if file is not None else {}
    mean, deviation = (_per_channel(config.get(key, 0.5), channels, f"{file}: {key}") for key in _KEYS)
    if not (deviation > 0).all():
        raise InputError(f"{file}: {_KEYS[1]} is {json.dumps(config[_KEYS[1]])}; a deviation is above 0")
    return mean, deviation


def _per_channel(value: Any, channels: int, name: str) -> np.ndarray:
    """One number for all channels or one for each, float32 [1 or channels]."""
    listed = value if isinstance(value, list) else [value]
    if not all(type(entry) in {int, float} and abs(entry) <= _LARGEST for entry in listed):
        raise InputError(f"{name} is {json.dumps(value)}; it takes a number, or one for each channel")
    if len(listed) not in {1, channels}:
        raise InputError(f"{name} has {len(listed)} numbers, the model takes images of {channels} channels")
    return np.array(listed, np.float32)
