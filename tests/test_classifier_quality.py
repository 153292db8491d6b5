"""Classifiers by what they give: a choice among classes, a score, or a decision on each of several labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import make_tokenizer
from report_factory import a_comparison, a_faithfulness, a_material

from benchmarks.matrix.models import VOCAB, family
from gatenorm_export.cli.main import main
from gatenorm_export.cli.tables import comparison_tables
from gatenorm_export.comparing import Limits, check_limits, verdict
from gatenorm_export.comparing.forward_quality import split_sentences
from gatenorm_export.comparing.similarity import class_quality, label_quality, score_quality
from gatenorm_export.errors import RefusedError
from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.kinds import kind_of, kind_of_graph
from gatenorm_export.records import ComparisonReport, LabelQuality, ScoreQuality
from gatenorm_export.reporting import render_html, render_markdown
from gatenorm_export.reporting.quality import quality_rows
from gatenorm_export.sources import resolve_model

WORDS = " ".join(f"w{4 + (7 * i + i * i // 3) % 120}" for i in range(600))
ON = {"text": "t", "text_sha256": "", "items": "sentences"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Outputs and problem type of a classifier -> its checkpoint, and the folder of a run that dropped two layers."""
    done: dict[tuple[int, str | None, str], tuple[Path, Path]] = {}

    def run(n_outputs: int, problem: str | None = None, of: str = "Sequence") -> tuple[Path, Path]:
        key = n_outputs, problem, of
        if key not in done:
            folder = tmp_path_factory.mktemp("classifier")
            row = dataclasses.replace(
                family("bert"),
                model_class=f"BertFor{of}Classification",
                extra={"num_labels": n_outputs, "problem_type": problem},
            )
            model, tokenizer = row.make(), make_tokenizer(VOCAB)
            # A random head gives every sentence the same labels; about zero, each label goes to half of them.
            if of == "Sequence":
                model.classifier.bias.data -= logits_of(model, tokenizer).mean(dim=0)
            for part in (model, tokenizer):
                part.save_pretrained(folder / "model")
            (folder / "words.txt").write_text(WORDS)
            done[key] = folder / "model", folder / "out"
            arguments = [str(folder / "model"), "--layers", "1,2", "--out", str(folder / "out")]
            asked = ["--text", str(folder / "words.txt"), "--flavour", "none", "--no-latency", "--quiet"]
            assert main(["run", *arguments, *asked]) == 0
        return done[key]

    return run


def logits_of(model: Any, tokenizer: Any) -> Any:
    """What the framework's model makes of each sentence, [sentences, outputs]."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(**tokenizer(part, return_tensors="pt")).logits for part in split_sentences(WORDS)])


def framework_logits(checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits [sentences, outputs] of the framework's model, and of the same without two attention sublayers."""
    spec = resolve_model(str(checkpoint))
    model, tokenizer = load_framework_model(spec)
    before = logits_of(model, tokenizer).numpy()
    with zeroed_attention(model, spec, (1, 2)):
        return before, logits_of(model, tokenizer).numpy()


def test_a_score_is_judged_by_the_order_that_it_gives(ran) -> None:
    stats = pytest.importorskip("scipy.stats")
    checkpoint, out = ran(1)
    quality = ComparisonReport.load(out / "compare.json").quality
    assert isinstance(quality, ScoreQuality)
    before, after = (logits[:, 0] for logits in framework_logits(checkpoint))
    assert quality.n_items == len(before) == 50
    assert quality.spearman_rho == pytest.approx(stats.spearmanr(before, after).statistic, abs=1e-3)
    assert quality.spearman_rho < 0.99
    assert quality.mean_deviation == pytest.approx(np.abs(after - before).mean() / before.std(), rel=1e-3)
    page = (out / "report.md").read_text()
    assert "Rank correlation of scores" in page
    assert "Top-1" not in page


def test_labels_are_judged_one_by_one(ran) -> None:
    checkpoint, out = ran(6, "multi_label_classification")
    quality = ComparisonReport.load(out / "compare.json").quality
    assert isinstance(quality, LabelQuality)
    before, after = (logits > 0 for logits in framework_logits(checkpoint))
    assert quality.n_labels == 6
    assert quality.n_given == before.sum()
    assert quality.decision_agreement == pytest.approx((before == after).mean())
    assert quality.common_labels == pytest.approx((before & after).sum() / (before | after).sum())
    assert quality.equal_items == pytest.approx((before == after).all(axis=1).mean())
    assert quality.common_labels < quality.decision_agreement < 1


def test_classes_of_tokens_are_judged_at_every_token(ran) -> None:
    """No token is masked: that is what a masked language model is asked, not what a tagger is given."""
    import torch

    checkpoint, out = ran(7, None, "Token")
    quality = ComparisonReport.load(out / "compare.json").quality
    assert (quality.measure, quality.items, quality.n_classes) == ("classes", "tokens", 7)
    spec = resolve_model(str(checkpoint))
    model, tokenizer = load_framework_model(spec)
    rows = [tokenizer(part, return_tensors="pt") for part in split_sentences(WORDS)]
    assert quality.n_items == sum(row["input_ids"].numel() for row in rows) == 600

    def classes() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([model(**row).logits[0].argmax(dim=-1).numpy() for row in rows])

    before = classes()
    with zeroed_attention(model, spec, (1, 2)):
        assert quality.top1_agreement == pytest.approx((before == classes()).mean(), abs=2e-3)
    assert quality.top1_agreement < 0.95


@pytest.mark.parametrize(
    ("outputs", "problem", "measure"),
    [
        (1, None, "scores"),
        (3, "regression", "scores"),
        (6, "multi_label_classification", "labels"),
        (3, "single_label_classification", "classes"),
    ],
)
def test_the_config_tells_what_fits(outputs: int, problem: str | None, measure: str, ran, capsys) -> None:
    checkpoint, out = ran(outputs, problem)
    assert kind_of(resolve_model(str(checkpoint))).measure == measure
    graph = out / "base" / "model.onnx"
    assert kind_of_graph(graph).measure == measure
    assert ComparisonReport.load(out / "compare.json").quality.measure == measure
    if measure != "classes":
        # Before any work: there is no distribution that KL could be of.
        capsys.readouterr()
        arguments = [str(checkpoint), "--drop", "1", "--out", str(out.parent / "refused"), "--flavour", "none"]
        assert main(["run", *arguments, "--max-kl", "1", "--quiet"]) == 5
        said = capsys.readouterr().err
        assert f"--max-kl does not apply to a model that is judged by {measure}; use --min-agreement" in said


def test_an_agreement_that_was_asked_for_can_be_missed(ran) -> None:
    for key in ((1, None), (6, "multi_label_classification")):
        _, out = ran(*key)
        graphs = [str(out / folder) for folder in ("base", "pruned")]
        asked = ["--no-latency", "--quiet", "--text", str(out.parent / "words.txt")]
        assert main(["compare", *graphs, *asked, "--min-agreement", "0.999"]) == 11
        assert main(["compare", *graphs, *asked, "--min-agreement", "-1"]) == 0


def test_scores_have_known_answers() -> None:
    base = np.array([[0.0], [1.0], [2.0], [3.0]])
    same_order = score_quality(base, 10 * base, **ON)
    assert same_order.spearman_rho == pytest.approx(1)
    assert same_order.mean_deviation == pytest.approx(13.5 / np.std([0, 1, 2, 3]))
    assert score_quality(base, -base, **ON).spearman_rho == pytest.approx(-1)
    assert score_quality(base, 0 * base, **ON).spearman_rho == 0
    both = score_quality(np.hstack([base, base]), np.hstack([base, -base]), **ON)
    assert (both.n_scores, both.spearman_rho) == (2, pytest.approx(0))
    with pytest.raises(RefusedError, match="gives all 4 sentences the same score"):
        score_quality(0 * base, base, **ON)


def test_labels_have_known_answers() -> None:
    base = np.array([[1.0, -1.0, -1.0], [1.0, 2.0, -3.0]])
    found = label_quality(base, np.array([[2.0, -2.0, 0.1], [1.0, -0.1, -3.0]]), **ON)
    assert (found.n_labels, found.n_given) == (3, 3)
    assert found.common_labels == pytest.approx(2 / 4)
    assert found.decision_agreement == pytest.approx(4 / 6)
    assert found.equal_items == 0
    none = label_quality(-np.abs(base), -np.abs(base), **ON)
    assert none.common_labels is None
    assert none.decision_agreement == 1
    with pytest.raises(RefusedError, match="on t neither model gives a label"):
        check_limits(Limits(min_agreement=0.5), none, None)
    assert "leaves every label ungiven" in said_of(none)


def said_of(quality: ScoreQuality | LabelQuality) -> str:
    report = a_comparison()
    facts = report.base_sizes.facts, report.pruned_sizes.facts
    return verdict(a_faithfulness(), quality, None, (), *facts)


def test_five_classes_or_fewer_have_no_top_5() -> None:
    rng = np.random.default_rng(0)
    for n_classes, shown in ((2, False), (5, False), (6, True)):
        base, pruned = rng.normal(size=(2, 20, n_classes))
        quality = class_quality(base, pruned, **ON)
        assert (quality.top5_agreement is not None) is shown
        assert any("Top-5" in row[0] for row in quality_rows(quality)) is shown
        material = dataclasses.replace(a_material(), comparison=a_comparison(quality=quality))
        assert ("Top 5 in common" in render_html(material)) is shown


@pytest.mark.parametrize("moved", [0.01, 3.0])
def test_verdict_and_reports_say_it_in_their_words(moved: float) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(40, 4))
    pruned = base + moved * rng.normal(size=base.shape)
    scores, labels = score_quality(base[:, :1], pruned[:, :1], **ON), label_quality(base, pruned, **ON)
    assert f"at a rank correlation of {scores.spearman_rho:.3f}" in said_of(scores)
    assert f"({labels.common_labels:.0%} of the labels that either model gives" in said_of(labels)
    assert ("damages the model" in said_of(scores)) is (moved > 1)
    for quality, words in ((scores, "Rank correlation"), (labels, "Labels in common")):
        report = a_comparison(quality=quality)
        material = dataclasses.replace(a_material(), comparison=report)
        for page in (render_html(material), render_markdown(material)):
            assert words in page
            assert "measure on items of your own" in page
        assert comparison_tables(report)
