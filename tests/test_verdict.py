"""The verdict is one sentence, whatever it has to say."""

from __future__ import annotations

import pytest
from report_factory import a_comparison, a_faithfulness, a_latency, a_quality, an_accuracy

from gatenorm_export.comparing import verdict
from gatenorm_export.records import EngineAccuracy, Threshold

MISSED = Threshold(name="max-ppl-ratio", limit=1.1, measured=1.3, passed=False)


def said(**changes: object) -> str:
    report = a_comparison()
    given: dict = {"latency": a_latency(), "quality": a_quality(), "thresholds": (), "faithfulness": a_faithfulness()}
    given |= changes
    return verdict(
        given.pop("faithfulness"),
        given.pop("quality"),
        given.pop("latency"),
        given.pop("thresholds"),
        report.base_sizes.facts,
        report.pruned_sizes.facts,
        given.pop("repair_latency", None),
        **given,
    )


NOT_RUN = an_accuracy(outputs=(), steps=(), passed=None, reason="not run: no GPU")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "Faithful: removing 4 of 30 attention sublayers makes decode 1.11x as fast, makes the KV cache 13% smaller",
        ),
        ({"latency": None}, "Faithful: removing 4 of 30 attention sublayers makes the KV cache 13% smaller and"),
        ({"faithfulness": a_faithfulness().model_copy(update={"passed": None})}, "Not checked for faithfulness: "),
        ({"quality": a_quality(ppl_ratio=3.0)}, "by 3.00, which damages the model (drop fewer layers, choose them"),
        ({"thresholds": (MISSED,)}, "; limits missed: max-ppl-ratio."),
        ({"repair_latency": a_latency()}, "; with the repair decode is 1.113 (1.020 to 1.150) times as fast as"),
        (
            {"latency": a_latency().model_copy(update={"decode_speedup_low": 0.98})},
            " makes decode 1.11x as fast (perhaps by noise alone: 0.98x to 1.15x), makes the KV cache 13% smaller",
        ),
        (
            {"latency": a_latency().model_copy(update={"decode_speedup_low": 0.8, "decode_speedup_high": 0.9})},
            " makes decode slower (1.11x as fast), makes the KV cache",
        ),
        ({"engines": (an_accuracy(), an_accuracy("pruned"))}, "; the engines compute what their graphs do."),
        ({"engine_latency": a_latency()}, "; on the GPU it makes decode 1.11x as fast."),
        ({"engines": (an_accuracy(), an_accuracy("pruned", wrong="logits"))}, "WRONG ENGINE: pruned.engine does not"),
        (
            {"engines": (an_accuracy(wrong="logits"), an_accuracy("pruned", wrong="logits"))},
            "WRONG ENGINE: base.engine and pruned.engine do not compute what the graph does; of the graphs alone: "
            "faithful: removing",
        ),
        ({"faithfulness": a_faithfulness().model_copy(update={"passed": False})}, "NOT FAITHFUL: the pruned graph"),
    ],
)
def test_it_is_one_sentence(changes: dict[str, object], words: str) -> None:
    sentence = said(**changes)
    assert words in sentence
    assert sentence.endswith(".")
    assert ". " not in sentence


@pytest.mark.parametrize("engines", [(NOT_RUN, NOT_RUN), (an_accuracy(), NOT_RUN)], ids=["neither", "one"])
def test_engines_that_were_not_run_are_not_called_right(engines: tuple[EngineAccuracy, ...]) -> None:
    assert "engine" not in said(engines=engines)
