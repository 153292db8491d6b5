"""Records of one pruning with figures as they come in practice, and knobs for the edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatenorm_export.records import (
    ComparisonReport,
    Convention,
    ConversionCheck,
    DepthTrend,
    EngineAccuracy,
    EngineArtifact,
    Faithfulness,
    FileDigest,
    GraphFacts,
    Latency,
    LatencyRow,
    LayerScore,
    LayerScores,
    ModelSpec,
    OutputAccuracy,
    OutputDifference,
    Precision,
    PreparedGraph,
    Profile,
    ProfileBounds,
    PrunePlan,
    Quality,
    Sizes,
    StepError,
    Threshold,
    TowerSpec,
    WorstElement,
)
from gatenorm_export.records.bench import Probe, RooflineRow
from gatenorm_export.reporting import ReportMaterial

VERSIONS = {"gatenorm": "0.1.0", "numpy": "2.3.0", "onnx": "1.19.1", "onnxruntime": "1.32.0", "polygraphy": "0.53.6"}
DROP = (19, 27, 28, 29)
# The Gate-Norm scores of SmolLM2-135M-Instruct.
SMOLLM2 = (
    *(3552.2, 1027.9, 1045.7, 905.6, 886.3, 785.7, 826.7, 604.6, 742.0, 781.2, 777.4, 790.3, 766.0, 934.1, 733.6),
    *(743.8, 825.6, 928.1, 849.0, 447.4, 755.8, 695.6, 712.0, 744.7, 685.2, 490.1, 463.2, 400.0, 391.7, 329.1),
)
SENTENCE = "Scores fall with depth, as the Attention Suppression Hypothesis predicts."


def a_model(name: str = "SmolLM2-135M-Instruct", n_layers: int = 30) -> ModelSpec:
    return ModelSpec(
        name=name,
        path="/models/SmolLM2-135M-Instruct.Q4_1.gguf",
        source="gguf",
        architecture="LlamaForCausalLM",
        towers=(
            TowerSpec(n_layers=n_layers, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, query_key_digest="7c" * 16),
        ),
        files=(FileDigest(name="SmolLM2-135M-Instruct.Q4_1.gguf", bytes=98_374_880, sha256="5a" * 32),),
    )


def some_scores(values: Sequence[float] = SMOLLM2, name: str = "SmolLM2-135M-Instruct") -> LayerScores:
    return LayerScores(
        versions=VERSIONS,
        model=a_model(name, len(values)),
        convention=Convention(checkpoint_dtype="Q4_1"),
        layers=tuple(LayerScore(layer=layer, score=score) for layer, score in enumerate(values)),
        trends={"": DepthTrend(spearman_rho=-0.714, falls_with_depth=True, sentence=SENTENCE)},
    )


def with_predictions(latency: Latency, *, short: bool = False) -> Latency:
    """The same with a roofline; ``short`` leaves a tenth of it on the table in the first row and maybe in the last."""
    rows = []
    for place, row in enumerate(latency.rows):
        beyond = {0: 1.11, len(latency.rows) - 1: 1.07}.get(place, 1.02) if short else 1.02
        found = RooflineRow(
            base_ms=row.base_p50_ms * 0.8,
            pruned_ms=row.base_p50_ms * 0.8 / (row.speedup * beyond),
            speedup=row.speedup * beyond,
            share=1 / beyond,
            short=1 / beyond < 0.95,
            certain=row.speedup_high / (row.speedup * beyond) < 0.95,
        )
        rows.append(row.model_copy(update={"roofline": found}))
    probe = Probe(bytes_per_s=21.4e9, flops_per_s=147e9, dtype="float32", how="products of one row and of many")
    return latency.model_copy(update={"rows": tuple(rows), "probe": probe})


def an_accuracy(role: str = "unpruned", n_cache: int = 30, *, wrong: str = "", **changes: Any) -> EngineAccuracy:
    """An engine in fp16 that was compared with its graph; ``wrong`` names an output that is beyond its tolerance."""
    names = ("logits", *(f"present.{layer}.{half}" for layer in range(n_cache) for half in ("key", "value")))
    outputs = []
    for place, name in enumerate(names):
        span = 41.37 if name == "logits" else 12.5 + place / 7
        limit = 0.0084 * span
        error = limit * (3.7 if name == wrong else 0.21 + 0.6 * ((place * 37) % 61) / 61)
        worst = WorstElement(step="decode 4", index=(0, 2, 27, 40), expected=-3.25, got=-3.25 + error)
        outputs.append(
            OutputAccuracy(
                output=name, max_abs_error=error, range=span, tolerance=limit, worst=worst, passed=name != wrong
            )
        )
    fields: dict[str, Any] = {
        "role": role,
        "engine": f"{'base' if role == 'unpruned' else role}.engine",
        "engine_sha256": "e2" * 32,
        "graph_sha256": "b0" * 32,
        "flavour": "tensorrt-rtx 1.7.1.116",
        "precision": "fp16",
        "device": "NVIDIA L4 (compute capability 8.9)",
        "reference": "ONNX Runtime 1.32.0 CPU",
        "steps": ("prefill", "decode 1", "decode 2", "decode 3", "decode 4", "chunk of 4", "decode 5", "decode 6"),
        "outputs": tuple(outputs),
        "tolerance_from": "4 times the error that the build measured for lowering and fp16 alone, at least 1e-04 of "
        "the output's range",
        "conversion": ConversionCheck(
            how="the source in float32; the prepared graph with the result of every node rounded to fp16",
            steps=("prompt", "decode 1"),
            outputs=(
                OutputDifference(output="logits", max_abs=0.0869, range=41.37, relative=0.0021),
                OutputDifference(output="cache", max_abs=0.0303, range=14.1, relative=0.00215),
            ),
        ),
        "passed": not wrong,
        "reason": f"FAILED: {wrong} is not what the graph computes" if wrong else "passed: 61 outputs over 8 steps",
    }
    return EngineAccuracy(**{**fields, **changes})


def a_latency() -> Latency:
    points = (
        ("prefill", 32, 1.12, 1.09),
        ("prefill", 128, 1.10, 1.07),
        ("prefill", 512, 1.13, 1.09),
        ("decode", 32, 1.09, 1.06),
        ("decode", 128, 1.11, 1.04),
        ("decode", 512, 1.14, 0.98),
    )
    rows = []
    for phase, sequence, speedup, low in points:
        tokens = sequence if phase == "prefill" else 1
        base = 1.52 * sequence if phase == "prefill" else 28.4 + sequence / 90
        pruned = base / speedup
        rows.append(
            LatencyRow(
                phase=phase,  # type: ignore[arg-type]
                sequence=sequence,
                repeats=30,
                base_p50_ms=base,
                base_p90_ms=base * 1.07,
                pruned_p50_ms=pruned,
                pruned_p90_ms=pruned * 1.06,
                base_tokens_per_s=1000 * tokens / base,
                pruned_tokens_per_s=1000 * tokens / pruned,
                speedup=speedup,
                speedup_low=low,
                speedup_high=2 * speedup - low,
            )
        )
    return Latency(
        backend="onnxruntime 1.32.0 (CPUExecutionProvider)",
        device="AMD EPYC 7B13",
        threads=2,
        batch=1,
        rows=tuple(rows),
        prefill_speedup=1.117,
        decode_speedup=1.113,
        decode_speedup_low=1.02,
        decode_speedup_high=1.15,
    )


def a_faithfulness() -> Faithfulness:
    names = ("prefill, 2 rows, left padded", *(f"decode step {step}" for step in range(1, 9)))
    errors = (4.2e-5, 3.1e-5, 2.8e-5, 3.3e-5, 3.9e-5, 2.2e-5, 3.0e-5, 4.6e-5, 3.8e-5)
    return Faithfulness(
        passed=True,
        reason="",
        reference="transformers' LlamaForCausalLM in float32",
        steps=tuple(
            StepError(step=name, max_abs_error=error, tolerance=1e-3, passed=True)
            for name, error in zip(names, errors, strict=True)
        ),
        max_abs_error=4.6e-5,
        logit_range=41.37,
        tolerance=1e-3,
        tokens_equal=True,
    )


def a_quality(**changes: Any) -> Quality:
    figures: dict[str, Any] = {
        "text": "the shipped sample text",
        "text_sha256": "7b" * 32,
        "n_tokens": 2046,
        "base_loss_nats": 2.6531,
        "pruned_loss_nats": 2.9184,
        "base_ppl": 14.198,
        "pruned_ppl": 18.512,
        "ppl_ratio": 1.3039,
        "kl_nats": 0.2917,
        "top1_agreement": 0.7732,
        "top5_agreement": 0.7418,
        "top10_agreement": 0.7295,
        "greedy_agreement": 0.3125,
        "greedy_tokens": 256,
    }
    return Quality(**{**figures, **changes})


def a_comparison(drop: tuple[int, ...] = DROP, n_layers: int = 30, **changes: Any) -> ComparisonReport:
    left = n_layers - len(drop)
    share = len(drop) / n_layers

    def sizes(n_attention: int, cut: float, engine: int | None) -> Sizes:
        facts = GraphFacts(
            n_nodes=int(2486 * (1 - 0.7 * cut)),
            n_parameters=int(134_515_008 * (1 - 0.2 * cut)),
            weight_bytes=int(538_060_032 * (1 - 0.2 * cut)),
            n_attention=n_attention,
            kv_bytes_per_token=1536 * n_attention,
        )
        return Sizes(facts=facts, onnx_bytes=int(538_912_345 * (1 - 0.2 * cut)), engine_bytes=engine)

    fields: dict[str, Any] = {
        "versions": VERSIONS,
        "base": "out/onnx/model.onnx",
        "pruned": "out/pruned/model.onnx",
        "base_sha256": "b0" * 32,
        "pruned_sha256": "c1" * 32,
        "dropped": drop,
        "n_layers": n_layers,
        "faithfulness": a_faithfulness(),
        "quality": a_quality(),
        "latency": a_latency(),
        "base_sizes": sizes(n_layers, 0, 541_772_916),
        "pruned_sizes": sizes(left, share, 527_118_044),
        "thresholds": (
            Threshold(name="max-ppl-ratio", limit=1.5, measured=1.3039, passed=True),
            Threshold(name="min-speedup", limit=1.05, measured=1.113, passed=True),
        ),
        "verdict": "Without 4 of its 30 attention layers the model decodes 11 % faster with 13 % less KV cache; "
        "perplexity rises by 30 %.",
        "passed": True,
        "device": "AMD EPYC 7B13, 2 cores, no GPU",
        "command": "gatenorm run smollm2 --drop 4 --out out/ --max-ppl-ratio 1.5 --min-speedup 1.05",
    }
    return ComparisonReport(**{**fields, **changes})


def a_prepared_graph(precision: Precision, **fields: Any) -> PreparedGraph:
    """The record of a graph that was converted for an engine."""
    return PreparedGraph(
        graph="model.onnx",
        files=(),
        parent_sha256="aa",
        parent_path="",
        flavour="tensorrt-rtx",
        precision=precision,
        changed=True,
        **fields,
    )


def an_engine(parent: str, name: str, n_cache: int = 30) -> EngineArtifact:
    def profile(phase: str, opt: int) -> Profile:
        ids = ProfileBounds(input="input_ids", min=(1, 1), opt=(1, opt), max=(1, 2048))
        cache = tuple(
            ProfileBounds(
                input=f"past_key_values.{layer}.{half}", min=(1, 3, 0, 64), opt=(1, 3, 128, 64), max=(1, 3, 2047, 64)
            )
            for layer in range(n_cache)
            for half in ("key", "value")
        )
        return Profile(name=phase, bounds=(ids, *cache))

    return EngineArtifact(
        versions={**VERSIONS, "tensorrt-rtx-cu13-bindings": "1.7.1.116"},
        engine=name,
        sha256="e2" * 32,
        bytes=541_772_916,
        parent_sha256=parent,
        flavour="tensorrt-rtx",
        flavour_version="1.7.1.116",
        precision="fp32",
        profiles=(profile("prefill", 128), profile("decode", 1)),
        n_network_layers=3127,
        n_inputs=63,
        n_outputs=61,
        build_seconds=41.27,
        built_on="AMD EPYC 7B13, no GPU",
    )


def a_material(
    values: Sequence[float] = SMOLLM2,
    drop: tuple[int, ...] = DROP,
    protect: tuple[int, ...] = (0,),
    *,
    name: str = "SmolLM2-135M-Instruct",
    engines: bool = True,
    engines_not_built: str | None = None,
    **comparison: Any,
) -> ReportMaterial:
    scores = some_scores(values, name)
    plan = PrunePlan(
        versions=VERSIONS,
        model_name=name,
        model_digest=scores.model.query_key_digest,
        scores_sha256="d3" * 32,
        n_layers=len(values),
        policy=f"lowest {len(drop)}",
        protect=protect,
        drop=drop,
    )
    report = a_comparison(drop, len(values), **comparison)
    built = (an_engine(report.base_sha256, "base.engine"), an_engine(report.pruned_sha256, "pruned.engine", 26))
    return ReportMaterial(scores, plan, report, built if engines else (), engines_not_built)
