"""aiperf against one model's generate_stream: what it sent, and what its records say.

perf_analyzer's wheel needs glibc 2.38, which Debian 12 does not have, and genai-perf calls it; aiperf is their
successor, in Python. It is used from an environment of its own, for it brings 1.2 GB.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.errors import MissingPartError, RefusedError

_START_SECONDS = "120"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """``requests`` prompts, ``concurrency`` at a time, each answered with exactly ``tokens`` tokens."""

    requests: int
    concurrency: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Aiperf:
    """aiperf's program, and the folder of the tokenizer that it counts with."""

    program: Path
    tokenizer: Path

    def run(self, address: str, model: str, traffic: Traffic, folder: Path) -> list[dict[str, Any]]:
        """Send the traffic; the records of the requests, in the order of their ends.

        Raises:
            RefusedError: it failed, or a request did.
        """
        folder.mkdir(parents=True)
        template, prompts = folder / "template.json", folder / "prompts.jsonl"
        body = f'"max_tokens": {traffic.tokens}, "stream": true, "ignore_eos": true'
        template.write_text(f'{{"text_input": {{{{ text|tojson }}}}, {body}}}\n')
        prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in _prompts(traffic.requests)))
        command = [str(self.program), "profile", "--model", model, "--tokenizer", str(self.tokenizer)]
        command += ["--url", f"http://{address}/v2/models/{model}/generate_stream", "--streaming"]
        command += ["--endpoint-type", "template", "--extra-inputs", f"payload_template:{template}"]
        command += ["--extra-inputs", "response_field:text_output"]
        command += ["--input-file", str(prompts), "--custom-dataset-type", "single_turn"]
        command += ["--concurrency", str(traffic.concurrency), "--request-count", str(traffic.requests)]
        command += ["--output-artifact-dir", str(folder / "artifacts"), "--ui", "none"]
        command += ["--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry", "--no-server-metrics"]
        variables = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        variables["AIPERF_SERVICE_REGISTRATION_TIMEOUT"] = _START_SECONDS
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        export = folder / "artifacts" / "profile_export.jsonl"
        if done.returncode != 0 or not export.is_file():
            raise RefusedError(f"aiperf ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        records = [json.loads(line) for line in export.read_text().splitlines()]
        failed = [record for record in records if record.get("error") or not record.get("metrics")]
        if failed or len(records) != traffic.requests:
            raise RefusedError(
                f"{model}: {len(failed)} of {len(records)} requests failed, {traffic.requests} were sent"
            )
        return sorted(records, key=lambda record: int(record["metadata"]["request_end_ns"]))


def find_aiperf(named: Path | None) -> Path:
    """aiperf's program: the one that was named, or the one on PATH.

    Raises:
        MissingPartError: there is none.
    """
    found = str(named) if named is not None else shutil.which("aiperf")
    if found is None or not Path(found).is_file():
        raise MissingPartError(
            "no aiperf: pip install aiperf==0.13.0 in an environment of its own, and name it --aiperf"
        )
    return Path(found)


def summary(records: list[dict[str, Any]], traffic: Traffic) -> dict[str, float]:
    """Percentiles over the requests, in milliseconds, and the tokens of all by the time from first to last."""

    def milliseconds(name: str) -> np.ndarray:
        return np.array([record["metrics"][name]["value"] for record in records], np.float64)

    gaps = np.concatenate([np.array(record["metrics"]["inter_chunk_latency"]["value"]) for record in records])
    start = min(int(record["metadata"]["request_start_ns"]) for record in records)
    end = max(int(record["metadata"]["request_end_ns"]) for record in records)
    result = {"tokens_per_second": traffic.tokens * len(records) / ((end - start) / 1e9)}
    for name, values in (
        ("request_ms", milliseconds("request_latency")),
        ("first_token_ms", milliseconds("time_to_first_token")),
        ("between_tokens_ms", gaps),
    ):
        result |= {f"{name}_p50": float(np.percentile(values, 50)), f"{name}_p99": float(np.percentile(values, 99))}
    return result


def _prompts(number: int) -> list[str]:
    """Prompts of one length that differ, so that nothing of one can serve another."""
    subjects = ("rivers", "bridges", "clocks", "maps", "engines", "gardens", "letters", "harbours")
    return [
        f"Question {1000 + index}: in a few sentences, how did people come to depend on {subjects[index % 8]}, and "
        "what would be different without them? Answer:"
        for index in range(number)
    ]
