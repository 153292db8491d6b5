"""Sounds that a speech model is judged on: read, mixed down and cut, or refused."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from gatenorm_export.comparing.audio import load_audio
from gatenorm_export.errors import InputError


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rate": 8000}, "is sampled at 8000 Hz, the model takes 16000 Hz"),
        ({"width": 1}, "holds 8-bit samples"),
        ({"samples": 0}, "holds no samples"),
        ({"cut": 20}, "not a readable WAV file"),
    ],
)
def test_a_sound_that_does_not_fit_is_refused(change: dict[str, int], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, change.get("width", 2), change.get("rate", 16000), 0, "NONE", ""))
        file.writeframes(b"\x01\x00" * 2 * change.get("samples", 1000))
    if "cut" in change:
        path.write_bytes(path.read_bytes()[: change["cut"]])
    with pytest.raises(InputError, match=complaint):
        load_audio(path, rate=16000, samples=480)


def test_a_recording_is_mixed_down_and_cut_into_clips(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.tile(np.array([16384, 0], "<i2"), 1000).tobytes())
    audio = load_audio(tmp_path / "sound.wav", rate=16000, samples=480)
    assert [len(clip) for clip in audio.clips] == [480, 480, 40]
    assert audio.clips[0] == pytest.approx(0.25)
