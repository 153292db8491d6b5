"""A process that infers shapes of ONNX files, for :mod:`gatenorm_export.shape_inference`; it imports onnx alone.

Each line on stdin is a JSON list: the file, the seconds of the processor and the bytes of address space that it may
take. The answer is a line, ``ok`` or a reason. A graph that takes more than it may ends the process.
"""

from __future__ import annotations

import json
import os
import sys

_WEIGHT_BYTES = 4096


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    # What native code prints must not look like an answer.
    os.dup2(2, 1)
    import onnx

    for line in sys.stdin:
        path, seconds, memory = json.loads(line)
        _limit("RLIMIT_AS", memory)
        _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + seconds)
        try:
            model = onnx.load(path, load_external_data=False)
            # Weights say nothing about lengths; only small constants are lengths themselves.
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > _WEIGHT_BYTES:
                    tensor.raw_data = b""
            onnx.shape_inference.infer_shapes(model, data_prop=True)
            answer = "ok"
        except MemoryError:
            os._exit(1)
        except Exception as error:
            # What cannot be inferred stays unknown, here as in the library.
            answer = f"not inferred: {type(error).__name__}"
        answers.write(answer + "\n")
        answers.flush()


def _limit(name: str, soft: int) -> None:
    try:
        import resource
    except ImportError:
        # Windows has no such limits.
        return
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
