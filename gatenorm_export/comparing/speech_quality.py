"""What pruning cost a speech model: transcripts of the same sounds, and predictions along the unpruned ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.audio import load_audio
from gatenorm_export.comparing.inputs import QualityInputs
from gatenorm_export.comparing.quality import QualitySums
from gatenorm_export.comparing.similarity import edit_distance
from gatenorm_export.comparing.speech import SpeechDecoder, SpeechEncoder, greedy_transcript
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.framework import load_config, load_feature_extractor, load_generation_config
from gatenorm_export.kinds import SPEECH_GRAPHS
from gatenorm_export.progress import Progress
from gatenorm_export.records import ModelSpec, TranscriptQuality

TOKENS_AT_MOST = 128
"""Of one transcript; a model that has lost its way repeats itself up to here."""


def speech_quality(
    base: Path, pruned: Path, inputs: QualityInputs, spec: ModelSpec | None, *, progress: Progress
) -> TranscriptQuality:
    """Judge a pruned encoder or decoder: the other graph, unpruned, is taken from beside ``base``.

    Every clip is transcribed greedily by both, without the rules that transformers' generation adds (no token is
    suppressed), from the prompt of the generation config. Then the pruned model is given the unpruned transcript, and
    its predictions at each token are held against the unpruned model's.

    Raises:
        InputError: the other graph is not there, the sound cannot be read, or the generation config does not say which
            tokens a transcript begins with.
        RefusedError: a graph produces no finite numbers.
    """
    config = load_config(base.parent, spec)
    extractor = load_feature_extractor(base.parent, spec, config)
    samples = 2 * config.max_source_positions * extractor.hop_length
    audio = load_audio(inputs.audio, rate=extractor.sampling_rate, samples=samples)
    encoders, decoders = _graphs(base, pruned)
    prompt, end = _prompt(load_generation_config(base.parent, spec), config, _places(base.parent, spec))
    most = min(TOKENS_AT_MOST, config.max_target_positions - len(prompt))
    sums = QualitySums()
    errors = equal = 0
    with progress.task("compare transcripts", total=len(audio.clips)) as bar:
        for clip in audio.clips:
            features = _features(extractor, clip, samples)
            states = [encoder.run(features) for encoder in encoders]
            transcripts = []
            for decoder, state in zip(decoders, states, strict=True):
                decoder.begin(state)
                transcripts.append(greedy_transcript(decoder.step, prompt, end, most))
            (expected, base_logits), (got, _) = transcripts
            errors += edit_distance(expected, got)
            equal += expected == got
            decoders[1].begin(states[1])
            forced = np.array([[*prompt, *expected[:-1]]], np.int64)
            pruned_logits = decoders[1].step(forced)[0, len(prompt) - 1 :]
            sums.add(base_logits, pruned_logits, np.array(expected))
            bar.advance()
    if not np.isfinite([sums.base_nats, sums.pruned_nats, sums.kl_nats]).all():
        raise RefusedError(f"{base} or {pruned}: the logits are not finite on {audio.name}; they cannot be judged")
    return TranscriptQuality(
        text=audio.name,
        text_sha256=audio.sha256,
        n_clips=len(audio.clips),
        n_tokens=sums.n,
        token_error_rate=errors / sums.n,
        equal_transcripts=equal / len(audio.clips),
        top1_agreement=sums.overlap[1] / sums.n,
        kl_nats=max(sums.kl_nats / sums.n, 0.0),
    )


def _graphs(
    base: Path, pruned: Path
) -> tuple[tuple[SpeechEncoder, SpeechEncoder], tuple[SpeechDecoder, SpeechDecoder]]:
    which = next((tower for tower, name in SPEECH_GRAPHS.items() if name == base.name), None)
    if which is None:
        raise InputError(
            f"{base}: a transcript needs both graphs; keep the names {' and '.join(SPEECH_GRAPHS.values())}"
        )
    other = base.with_name(SPEECH_GRAPHS["decoder" if which == "encoder" else "encoder"])
    if not other.is_file():
        raise InputError(f"{other}: not there; a transcript needs both graphs, put the other one beside {base.name}")
    if which == "encoder":
        decoder = SpeechDecoder(other)
        return (SpeechEncoder(base), SpeechEncoder(pruned)), (decoder, decoder)
    encoder = SpeechEncoder(other)
    return (encoder, encoder), (SpeechDecoder(base), SpeechDecoder(pruned))


def _features(extractor: Any, clip: np.ndarray, samples: int) -> np.ndarray:
    found = extractor(
        clip,
        sampling_rate=extractor.sampling_rate,
        max_length=samples,
        padding="max_length",
        truncation=True,
        return_tensors="np",
    )
    return np.asarray(found["input_features"], np.float32)


def _places(folder: Path, spec: ModelSpec | None) -> dict[str, Path]:
    """Where the configs are read from, by name: beside the graph, or in the checkpoint."""
    names = ("config.json", "generation_config.json")
    return {name: (folder if spec is None or (folder / name).is_file() else Path(spec.path)) / name for name in names}


def _prompt(generation: Any, config: Any, places: dict[str, Path]) -> tuple[list[int], int | None]:
    """What a transcript begins with, and the token that ends it."""
    found = [("config.json", "decoder_start_token_id", config.decoder_start_token_id)]
    languages, tasks = (getattr(generation, key, None) for key in ("lang_to_id", "task_to_id"))
    if languages:
        # A multilingual model would guess the language first; English, transcription, no timestamps fit any clip.
        known = languages if isinstance(languages, dict) else {}
        language = known.get("<|en|>", next(iter(known.values()), None))
        found.append(("generation_config.json", "lang_to_id", language))
        task = tasks.get("transcribe") if isinstance(tasks, dict) else None
        found.append(("generation_config.json", "transcribe in task_to_id", task))
    without_times = getattr(generation, "no_timestamps_token_id", None)
    if without_times is not None:
        found.append(("generation_config.json", "no_timestamps_token_id", without_times))
    for file, key, token in found:
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise InputError(
                f"{places[file]}: {key} is {'not there' if token is None else token}; a transcript begins with it, and "
                f"it must be one of the {config.vocab_size:,} tokens"
            )
    end = config.eos_token_id
    return [token for _, _, token in found], end if isinstance(end, int) else None
