"""Small tasks in lm-eval's own format, written over the words of the tiny models' tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = ("choices", "words", "prose", "go_on")


def write_tasks(folder: Path) -> Path:
    """A folder of task files and their data; one task for each way in which lm-eval asks a model.

    ``choices`` has answers of one and of several tokens, and a context longer than the models' 128 positions;
    ``words`` has one-token answers only, which share their runs; ``prose`` has texts of several windows; ``go_on`` has
    prompts of unequal lengths.
    """
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(f"w{word}" for word in rng.integers(4, 128, size=n))

    folder.mkdir(parents=True, exist_ok=True)
    choices = [
        {"question": text(n), "choices": [text(k) for k in (1, 3, 1, 6)], "answer": i % 4}
        for i, n in enumerate((5, 150, 9, 127, 30, 2, 17, 40))
    ]
    words = [{"question": text(n), "choices": [text(1), text(1)], "answer": i % 2} for i, n in enumerate((3, 12, 7, 7))]
    prose = [{"text": text(n)} for n in (5, 300, 128, 129)]
    go_on = [{"text": text(n), "next": text(2)} for n in (4, 11, 11, 30, 125)]
    asks = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    asked = {"output_type": "multiple_choice", **asks}
    _write(folder, "choices", choices, **asked, metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}])
    _write(folder, "words", words, **asked, metric_list=[{"metric": "acc"}])
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    _write(folder, "prose", prose, **rolling, metric_list=metrics)
    generate = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{next}}"}
    stops = {"until": ["w7", "w50 "], "max_gen_toks": 10}
    _write(folder, "go_on", go_on, **generate, generation_kwargs=stops, metric_list=[{"metric": "exact_match"}])
    group = {"group": "both", "task": ["choices", "words"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    return folder


def _write(folder: Path, name: str, documents: list[dict[str, Any]], **rest: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data), "cache_dir": str(folder / "cache")},
        "test_split": "train",
        "metadata": {"version": 2.0},
        **rest,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
