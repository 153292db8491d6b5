"""The sound that a speech model is judged on."""

from __future__ import annotations

import dataclasses
import hashlib
import wave
from pathlib import Path

import numpy as np

from gatenorm_export.errors import InputError

SYNTHETIC = 8
_LONGEST = 16
"""Clips of a long recording; more say little more, and a transcript takes seconds each."""


@dataclasses.dataclass(frozen=True)
class Audio:
    """Clips of mono samples, float32 within -1 to 1, and their identity."""

    name: str
    sha256: str
    clips: tuple[np.ndarray, ...]


def load_audio(path: Path | None, *, rate: int, samples: int) -> Audio:
    """Read a WAV file and cut it into clips of ``samples`` samples, or make seeded synthetic clips.

    Raises:
        InputError: the file cannot be read, is no 16-bit PCM, or has another sampling rate than ``rate``.
    """
    if path is None:
        clips = synthetic_clips(SYNTHETIC, samples, rate)
        name = f"{SYNTHETIC} synthetic clips (chirps, pulses and noise, seed 0; no speech)"
        return Audio(name, hashlib.sha256(np.stack(clips).tobytes()).hexdigest(), clips)
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, found, frames = (
                file.getsampwidth(),
                file.getnchannels(),
                file.getframerate(),
                file.getnframes(),
            )
            content = file.readframes(min(frames, _LONGEST * samples))
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"{path}: not a readable WAV file ({error})") from error
    if width != 2:
        raise InputError(f"{path}: holds {8 * width}-bit samples; convert it to 16-bit PCM")
    if found != rate:
        raise InputError(f"{path}: is sampled at {found} Hz, the model takes {rate} Hz; resample it")
    whole = np.frombuffer(content[: len(content) // (2 * channels) * 2 * channels], "<i2")
    mono = whole.reshape(-1, channels).mean(axis=1).astype(np.float32) / 32768
    if not len(mono):
        raise InputError(f"{path}: holds no samples")
    clips = tuple(mono[start : start + samples] for start in range(0, len(mono), samples))
    return Audio(path.name, hashlib.sha256(content).hexdigest(), clips)


def synthetic_clips(count: int, samples: int, rate: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Clips with a pitch that glides, beats of changing speed, and some noise: sound with structure, but no speech."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / rate
    clips = []
    for _ in range(count):
        low, high = np.sort(rng.uniform(100, 3000, size=2))
        pitch = low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 2) * seconds))
        beats = (np.sin(2 * np.pi * rng.uniform(1, 8) * seconds) > rng.uniform(-0.5, 0.5)).astype(np.float64)
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * beats
        clips.append((0.3 * tone + 0.02 * rng.normal(size=samples)).astype(np.float32))
    return tuple(clips)
