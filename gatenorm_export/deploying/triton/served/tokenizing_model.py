"""Triton's Python backend loads this file: text to the inputs of an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from gatenorm_export.deploying.triton.served.prompts import BadRequestError, BundledTokenizer, read_text


class TritonPythonModel:
    """The server makes one for each instance, in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self._tokenizer = BundledTokenizer(folder / "tokenizer.json")
        self._max_length = int(config["parameters"]["max_length"]["string_value"])
        self._outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One answer for each request; a bad one gets an error, others do not."""
        answers = []
        for request in requests:
            try:
                texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
                answers.append(self._answer([read_text(text) for text in texts.reshape(-1)]))
            except BadRequestError as error:
                refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                answers.append(pb_utils.InferenceResponse(error=refusal))
        return answers

    def _answer(self, texts: list[str]) -> Any:
        encoded = [self._tokenizer.encode(text, self._max_length) for text in texts]
        if not all(encoded):
            raise BadRequestError("a text has no tokens; give one token at least")
        # Padding on the right, hidden by the mask; any token will do.
        arrays = np.zeros((len(encoded), max(map(len, encoded)), 2), np.int64)
        for row, tokens in zip(arrays, encoded, strict=True):
            row[: len(tokens), 0], row[: len(tokens), 1] = tokens, 1
        found = {"input_ids": arrays[..., 0], "attention_mask": arrays[..., 1]}
        return pb_utils.InferenceResponse(
            output_tensors=[
                # One text is one segment: its tokens are all of type 0.
                pb_utils.Tensor(name, np.ascontiguousarray(found.get(name, np.zeros(arrays.shape[:2], np.int64))))
                for name in self._outputs
            ]
        )
