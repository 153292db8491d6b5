"""The images that a vision tower is judged on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from gatenorm_export.errors import InputError, needs
from gatenorm_export.records import ModelSpec

SYNTHETIC = 64
_SUFFIXES = {".npy", ".png", ".jpg", ".jpeg"}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as the model takes them, float32 [channels, height, width] each, and their identity."""

    name: str
    sha256: str
    pixels: tuple[np.ndarray, ...]


def load_images(folder: Path | None, shape: tuple[int, int, int], graph_folder: Path, spec: ModelSpec | None) -> Images:
    """Read every .npy, .png and .jpg of a folder, or make seeded synthetic images of ``shape``.

    A .npy file holds what the model takes, float [channels, height, width]. Pictures are resized to the model's size,
    without cropping, and normalised with the mean and deviation of preprocessor_config.json (0.5 without one).

    Raises:
        InputError: the folder holds no image, or one cannot be read or has another shape.
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
    norm = _normalisation(graph_folder, spec)
    for path in files:
        read.append(_array(path, shape) if path.suffix == ".npy" else _picture(path, shape, *norm))
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
        with Image.open(path) as picture:
            resized = picture.convert("RGB" if shape[0] == 3 else "L").resize((shape[2], shape[1]))
            pixels = np.asarray(resized, np.float32) / 255
    except OSError as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error
    pixels = pixels.reshape(shape[1], shape[2], shape[0])
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1), np.float32)


def _normalisation(graph_folder: Path, spec: ModelSpec | None) -> tuple[np.ndarray, np.ndarray]:
    folders = [graph_folder, *([Path(spec.path)] if spec is not None else [])]
    for file in (folder / "preprocessor_config.json" for folder in folders):
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            found = [np.array(config.get(key, 0.5), np.float32) for key in ("image_mean", "image_std")]
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{file}: not a readable preprocessor config ({error})") from error
        return found[0], found[1]
    return np.full(1, 0.5, np.float32), np.full(1, 0.5, np.float32)
