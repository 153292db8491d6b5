"""Guard and repair: fits against numpy, pieces against the whole graph, repaired graphs against the framework."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from model_zoo import NAMES
from toy_graphs import BLOCKS, evaluate, toy_decoder

from gatenorm_export.calibrating import CorpusRequest, GuardRequest, StreamModel, fit_repairs, guard_layers
from gatenorm_export.calibrating.corpus import MEASURED_WINDOWS, Corpus, load_corpus, split_windows
from gatenorm_export.calibrating.least_squares import NormalEquations, factors_of, fit_linear
from gatenorm_export.calibrating.metering import Meter
from gatenorm_export.cli.main import main
from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.pruning import describe_graph, prune_graph
from gatenorm_export.records import ComparisonReport
from gatenorm_export.repairs import LayerRepair, Repair, Repaired, load_repairs, parse_repair, save_repairs
from graph_passes import StandIn, SurgeryRefused, find_attention, remove_attention

KINDS = ("bias", "mlp", "linear", "linear:8", "bias+mlp", "linear:8+mlp")


def rows(
    n: int, features: int = 6, targets: int = 5, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(features, targets))
    x = rng.normal(size=(n, features)) + 3.0
    return x, x @ truth + 2.0 + noise * rng.normal(size=(n, targets))


def equations(x: np.ndarray, y: np.ndarray) -> NormalEquations:
    sums = NormalEquations(x.shape[-1], y.shape[-1])
    for start in range(0, len(x), 7):
        sums.add(x[start : start + 7], y[start : start + 7])
    return sums


def tokens(n: int, length: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 128, size=(n, length))


def test_the_fit_is_least_squares() -> None:
    x, y = rows(400)
    unseen = rows(100, seed=1)
    fit = fit_linear(equations(x, y), equations(*unseen))
    every_x, every_y = np.concatenate([x, unseen[0]]), np.concatenate([y, unseen[1]])
    expected, *_ = np.linalg.lstsq(np.c_[every_x, np.ones(len(every_x))], every_y, rcond=None)
    np.testing.assert_allclose(fit.weight, expected[:-1], atol=2e-3)
    np.testing.assert_allclose(fit.bias, expected[-1], atol=2e-2)
    error = ((unseen[0] @ fit.weight + fit.bias - unseen[1]) ** 2).sum()
    assert equations(*unseen).squared_error(fit.weight, fit.bias) == pytest.approx(error, rel=1e-6)


def test_the_ridge_grows_where_rows_are_few_and_noisy() -> None:
    clean = fit_linear(equations(*rows(400, noise=0.01)), equations(*rows(100, noise=0.01, seed=1)))
    rng = np.random.default_rng(5)
    noise = [(rng.normal(size=(n, 40)), rng.normal(size=(n, 5))) for n in (60, 60)]
    assert fit_linear(equations(*noise[0]), equations(*noise[1])).ridge > clean.ridge


def test_reduced_rank_is_the_best_of_its_rank() -> None:
    x, y = rows(300, noise=1.0)
    sums = equations(x, y)
    fit = fit_linear(sums, sums, rank=2)
    assert np.linalg.matrix_rank(fit.weight, tol=1e-8) == 2
    left, right = factors_of(fit.weight, 2)
    assert (left.shape, right.shape) == ((6, 2), (2, 5))
    np.testing.assert_allclose(left @ right, fit.weight, atol=1e-9)
    # Cutting the full solution's own singular values is what a naive low rank would be.
    full = fit_linear(sums, sums).weight
    u, s, v = np.linalg.svd(full)
    naive = (u[:, :2] * s[:2]) @ v[:2]
    bias = y.mean(axis=0) - x.mean(axis=0) @ naive
    assert sums.squared_error(fit.weight, fit.bias) < sums.squared_error(naive, bias)


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_together_are_the_graph(name: str, exported) -> None:
    _, graph, _ = exported(name)
    model, windows = StreamModel(graph), tokens(3)
    stream = model.embed(windows)
    for layer in model.layers:
        branch, _ = model.attend(layer, stream, windows)
        stream = model.rest(layer, stream, branch, windows).following
    session = onnxruntime.InferenceSession(str(graph))
    feed = model.feeds(windows)
    expected = session.run(["logits"], {entry.name: feed[entry.name] for entry in session.get_inputs()})[0]
    np.testing.assert_allclose(model.logits(stream, windows), expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_constant_stand_in_is_attention_whose_projection_is_its_bias(block: str) -> None:
    layers, rng = (0, 2), np.random.default_rng(3)
    biases = {layer: rng.normal(size=12).astype(np.float32) for layer in layers}
    reference = toy_decoder(block)
    for layer in layers:
        # Behind a scale or a norm what attention adds is not its projection's bias: there the parameters follow.
        if block == "sandwich":
            pytest.skip("what a norm adds for a constant is another constant; the framework test covers stand-ins")
        factor = 2.0 if block == "scaled" else 1.0
        for name, array in ((f"wo{layer}", np.zeros((12, 12))), (f"bo{layer}", factor * biases[layer])):
            reference.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    repaired = toy_decoder(block)
    stand_ins = {layer: StandIn(ir.tensor(bias)) for layer, bias in biases.items()}
    remove_attention(repaired, layers, kv_names="keep", stand_ins=stand_ins)
    expected = evaluate(reference)
    for name, array in evaluate(repaired).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert find_attention(repaired).layers == (1,)
    assert not {f"wo{layer}" for layer in layers} & set(repaired.graph.initializers)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_linear_stand_in_of_zeros_is_plain_removal(block: str) -> None:
    zeros = StandIn(ir.tensor(np.zeros(12, np.float32)), (ir.tensor(np.zeros((12, 12), np.float32)),))
    plain, repaired = toy_decoder(block), toy_decoder(block)
    remove_attention(plain, (0, 1, 2), kv_names="keep")
    remove_attention(repaired, (0, 1, 2), kv_names="keep", stand_ins={1: zeros})
    expected = evaluate(plain)
    for name, array in evaluate(repaired).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_stand_in_for_a_layer_that_stays_is_refused_before_any_edit() -> None:
    model = toy_decoder()
    n_nodes = len(model.graph)
    with pytest.raises(SurgeryRefused, match="layer 2 has a stand-in but is not removed"):
        remove_attention(model, (0,), stand_ins={2: StandIn(ir.tensor(np.zeros(12, np.float32)))})
    assert len(model.graph) == n_nodes


def repair_graph(graph: Path, out: Path, kind: str, drop: tuple[int, ...]) -> Repaired:
    repair = parse_repair(kind)
    windows = tokens(10)
    fitted = fit_repairs(StreamModel(graph), windows, drop, repair)
    repaired = Repaired(repair, fitted, "random tokens", "00", int(windows.size))
    prune_graph(graph, out, layers=drop, repaired=repaired)
    return repaired


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-gqa"])
def test_a_repaired_graph_is_faithful_to_the_framework_with_the_same_repair(
    name: str, kind: str, exported, tmp_path: Path
) -> None:
    spec, graph, _ = exported(name)
    drop = (1, 2)
    repaired = repair_graph(graph, tmp_path / "out", kind, drop)
    loaded = load_repairs(tmp_path / "out" / "repair.safetensors")
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop, repairs=loaded).passed is True
    # Neither no repair nor another one passes.
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop).passed is False
    wrong = {layer: _scaled(repair) for layer, repair in repaired.layers.items()}
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop, repairs=wrong).passed is False


def _scaled(repair: LayerRepair) -> LayerRepair:
    down = repair.down * 1.05 if repair.down is not None else None
    return dataclasses.replace(repair, bias=repair.bias * 1.2 if repair.bias is not None else None, down=down)


def test_a_comparison_times_a_repair_against_the_same_removal_without_it(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    repair_graph(graph, tmp_path / "repaired", "linear", (1, 2))
    prune_graph(graph, tmp_path / "plain", layers=(1, 2))
    timed = {}
    for name in ("repaired", "plain"):
        command = ["compare", str(graph.parent), str(tmp_path / name), "-o", str(tmp_path / f"{name}.json"), "--quiet"]
        assert main(command) == 0
        timed[name] = ComparisonReport.load(tmp_path / f"{name}.json")
    assert timed["plain"].repair_latency is None
    cost = timed["repaired"].repair_latency
    assert cost is not None
    assert {row.phase for row in cost.rows} == {row.phase for row in timed["repaired"].latency.rows}
    assert "repair" in timed["repaired"].verdict
    assert f"{cost.decode_speedup:.3f}" in timed["repaired"].verdict
    assert sorted(path.name for path in (tmp_path / "repaired").iterdir() if path.name.startswith(".")) == []


def test_what_a_repair_costs_is_what_the_graph_has_more(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    plain = prune_graph(graph, tmp_path / "plain", layers=(1, 2))
    more = {}
    for kind in KINDS:
        repair_graph(graph, tmp_path / kind, kind, (1, 2))
        after = describe_graph(tmp_path / kind / "model.onnx").facts
        more[kind] = after.n_nodes - plain.after.n_nodes, after.n_parameters - plain.after.n_parameters
        record = json.loads((tmp_path / kind / "manifest.json").read_text())
        # The norm that attention read stays for a linear stand-in; it is kept, not added.
        norms = 2 * 64 if kind.startswith("linear") else 0
        assert record["repair"]["n_parameters"] + norms == more[kind][1]
        # Pruned again by the original numbers: a repaired graph is a graph like any other.
        again = prune_graph(tmp_path / kind / "model.onnx", tmp_path / f"{kind}-again", layers=(0, 1))
        assert again.dropped == (0, 1, 2)
    assert more["mlp"] == (0, 0)
    assert more["bias"] == more["bias+mlp"] == (2, 2 * 64)
    assert more["linear:8"][1] == 2 * (2 * 64 * 8 + 64 + 64)


def test_a_repaired_graph_that_is_pruned_again_keeps_its_repair(exported, tmp_path: Path) -> None:
    spec, graph, _ = exported("llama-gqa")
    repair_graph(graph, tmp_path / "once", "linear:8", (1,))
    once = tmp_path / "once" / "model.onnx"
    bare = prune_graph(once, tmp_path / "bare", layers=(3,))
    both = repair_graph(once, tmp_path / "both", "mlp", (2,))
    assert both.layers.keys() == {2}
    for folder, dropped, repaired in (("bare", (1, 3), {1}), ("both", (1, 2), {1, 2})):
        loaded = load_repairs(tmp_path / folder / "repair.safetensors")
        assert loaded.keys() == repaired
        assert check_faithfulness(tmp_path / folder / "model.onnx", spec, dropped, repairs=loaded).passed is True
    assert bare.repair is not None
    assert bare.repair.kind == "linear:8"
    record = json.loads((tmp_path / "both" / "manifest.json").read_text())["repair"]
    assert record["kind"] == "linear:8, then mlp"
    assert [layer["layer"] for layer in record["layers"]] == [1, 2]


def test_each_repair_brings_the_stream_nearer_than_none(exported) -> None:
    """On text that it was not fitted on, in the order of what each can express."""
    _, graph, _ = exported("llama-gqa")
    model = StreamModel(graph)
    fitted, unseen = tokens(48), tokens(6, seed=9)
    drop = (2,)
    base = StreamModel(graph)
    meter = Meter(base, unseen)
    costs = {}
    for kind in ("none", "bias", "linear"):
        meter.adopt(frozenset(), {})
        meter.adopt(frozenset(drop), fit_repairs(model, fitted, drop, parse_repair(kind)))
        costs[kind] = meter.cost(None).kl_nats
    assert costs["linear"] < costs["bias"] < costs["none"]


def corpus() -> Corpus:
    return split_windows(tokens(40), "random tokens")


def test_the_guard_spares_what_costs_more_than_its_budget(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model = StreamModel(graph)
    meter = Meter(model, corpus().measured)
    single = {layer: meter.cost(layer).ppl / meter.base_ppl for layer in model.layers}
    worst = max(single, key=lambda layer: single[layer])
    budget = (single[worst] + sorted(single.values())[-2]) / 2
    ranked = (worst, *(layer for layer in model.layers if layer != worst))
    chosen, report = guard_layers(model, corpus(), ranked, 1, GuardRequest(search="order", budget=budget))
    assert chosen == (ranked[1],)
    spared = {entry.layer: entry for entry in report.spared}
    assert spared[worst].protected
    assert spared[worst].ppl_ratio == pytest.approx(single[worst], rel=1e-6)
    assert f"layer {worst}" in " ".join(report.sentences)
    with pytest.raises(RefusedError, match="only 0 of 1 layers can go within the budget"):
        guard_layers(model, corpus(), (worst,), 1, GuardRequest(search="order", budget=single[worst] * 0.999))


def test_greedy_takes_the_cheapest_at_each_step(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model = StreamModel(graph)
    chosen, report = guard_layers(model, corpus(), model.layers, 2, GuardRequest(force=True))
    meter = Meter(model, corpus().measured)
    first = min(model.layers, key=lambda layer: meter.cost(layer).kl_nats)
    assert report.steps[0].layer == first
    assert report.steps[0].kl_nats == pytest.approx(meter.cost(first).kl_nats, rel=1e-5)
    assert set(chosen) == {step.layer for step in report.steps}
    assert report.steps[1].ppl_ratio == pytest.approx(report.steps[0].cost * report.steps[1].cost)
    few, _ = guard_layers(model, corpus(), model.layers[:2], 2, GuardRequest(candidates=2, force=True))
    assert few == model.layers[:2]
    with pytest.raises(RefusedError, match="cannot choose 3 layers out of 2 candidates"):
        guard_layers(model, corpus(), model.layers, 3, GuardRequest(candidates=2))


@pytest.mark.parametrize("kind", ["none", "linear"])
def test_plain_gate_norm_stands_beside_a_guarded_plan(kind: str, exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model, repair, windows = StreamModel(graph), parse_repair(kind), corpus()
    meter = Meter(model, windows.measured)
    # As if the lowest score were that of the layer that costs most.
    ranked = tuple(sorted(model.layers, key=lambda layer: -meter.cost(layer).kl_nats))
    chosen, report = guard_layers(model, windows, ranked, 1, GuardRequest(repair=repair, force=True))
    plain = report.plain
    assert plain.layers == ranked[:1]
    assert plain.ppl_ratio == pytest.approx(meter.cost(ranked[0]).ppl / meter.base_ppl, rel=1e-6)
    assert (plain.repaired_ppl_ratio is None) == (kind == "none")
    assert chosen != plain.layers
    assert f"would remove {ranked[0]}, which multiplies perplexity by {plain.ppl_ratio:.3f}" in " ".join(
        report.sentences
    )
    everything, all_report = guard_layers(model, windows, ranked, len(ranked), GuardRequest(repair=repair, force=True))
    assert all_report.plain.layers == everything
    assert "plain Gate-Norm chooses the same" in " ".join(all_report.sentences)
    if kind == "linear":
        # The same layers with the same stand-ins cost what the search's last step did.
        assert all_report.plain.repaired_ppl_ratio == pytest.approx(all_report.steps[-1].ppl_ratio, rel=1e-5)


def test_an_interrupted_search_goes_on_where_it_was(exported, tmp_path: Path, monkeypatch) -> None:
    _, graph, _ = exported("llama-gqa")
    model, request, cache = StreamModel(graph), GuardRequest(force=True), tmp_path / "cache.json"
    whole, report = guard_layers(model, corpus(), model.layers, 2, request)
    measure, calls = Meter.cost, []

    def interrupted(self: Meter, layer: int | None, **options: int | None) -> object:
        calls.append(layer)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, layer, **options)

    monkeypatch.setattr(Meter, "cost", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guard_layers(model, corpus(), model.layers, 2, request, cache=cache)
    assert len(json.loads(cache.read_text())["costs"]) == 3
    resumed, rest = guard_layers(model, corpus(), model.layers, 2, request, cache=cache)
    assert resumed == whole
    assert rest.n_measured == report.n_measured - 3
    assert not cache.exists()


def test_the_signs_of_a_ruined_model_stop_a_plan(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model = StreamModel(graph)
    # Uniform tokens and a random model: perplexity lies beyond the limit before anything goes, so only a jump counts.
    stuck = np.tile(tokens(1), (12, 1))
    meter = Meter(model, stuck)
    assert meter.base_ppl > 0
    import gatenorm_export.calibrating.guard as guard

    before, guard.JUMP_LIMIT = guard.JUMP_LIMIT, 0.0
    try:
        with pytest.raises(RefusedError, match=r"ruins the model.*--despite-failure"):
            guard_layers(model, corpus(), model.layers, 1, GuardRequest())
        _, report = guard_layers(model, corpus(), model.layers, 1, GuardRequest(force=True))
        assert report.forced
    finally:
        guard.JUMP_LIMIT = before


def test_repairs_survive_their_file_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    repair = LayerRepair(3, bias=np.ones(4, np.float32), factors=(np.eye(4, dtype=np.float32),) * 2)
    save_repairs({3: repair}, tmp_path / "r.safetensors")
    loaded = load_repairs(tmp_path / "r.safetensors")[3]
    np.testing.assert_array_equal(loaded.branch(np.ones((1, 4)), np.zeros((1, 4))), [[2.0] * 4])
    save_file({"layer.3.evil": np.ones(1, np.float32)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"layer\.3\.evil"):
        load_repairs(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("text", ["lin", "linear:0", "bias:3", "mlp:2", "none+mlp", "mlp+bias", "bias+mlp:2", ""])
def test_a_repair_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write none, bias, mlp, linear"):
        parse_repair(text)
    assert parse_repair("linear:64") == Repair("linear", 64)


@pytest.mark.parametrize("text", ["none", *KINDS, "linear:8"])
def test_a_repair_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_repair(text)) == text


def test_windows_are_set_aside_and_short_texts_refused(exported, tmp_path: Path) -> None:
    spec, graph, _ = exported("llama-gqa")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{4 + index % 90}" for index in range(256 * 9)))
    alone = load_corpus(CorpusRequest(text, shipped=False), graph.parent, spec)
    assert (len(alone.fitted), len(alone.measured)) == (7, 2)
    both = load_corpus(CorpusRequest(text), graph.parent, spec)
    assert len(both.fitted) > len(alone.fitted)
    assert both.sha256 != alone.sha256
    text.write_text("w5 " * 300)
    with pytest.raises(InputError, match=r"text\.txt: 300 tokens are too few"):
        load_corpus(CorpusRequest(text, shipped=False), graph.parent, spec)


def test_the_verbs_guard_and_repair(exported, tmp_path: Path, capsys) -> None:
    spec, graph, _ = exported("llama-gqa")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{token}" for token in tokens(1, 256 * 12).ravel()))
    calibration = ["--calibration-text", str(text), "--no-shipped-text"]
    assert main(["score", spec.path, "-o", str(tmp_path), "--quiet"]) == 0
    scores = str(tmp_path / "scores.json")
    guard = ["plan", scores, "--drop", "2", "--guard", "--graph", str(graph), "--repair", "bias", "--despite-failure"]
    capsys.readouterr()
    assert main([*guard, *calibration, "-o", str(tmp_path), "--json", "--quiet"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["drop"]) == 2
    assert [step["layer"] for step in plan["guard"]["steps"]]
    prune = ["prune", str(graph), "--plan", str(tmp_path / "plan.json"), "--repair", "linear:4", *calibration]
    assert main([*prune, "-o", str(tmp_path / "pruned"), "--quiet"]) == 0
    assert "repaired by linear:4" in capsys.readouterr().out
    assert main(["compare", str(graph.parent), str(tmp_path / "pruned"), "--no-latency", "--quiet", "--json"]) == 0
    faithfulness = json.loads(capsys.readouterr().out)["faithfulness"]
    assert faithfulness["passed"] is True
    assert "replaced by its repair" in faithfulness["reference"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "S", "--drop", "1", "--guard"], "name the unpruned one with --graph"),
        (["plan", "S", "--layers", "1", "--guard", "--graph", "G"], "--guard chooses the layers"),
        (["plan", "S", "--drop", "1", "--repair", "linear"], "--repair is given to `gatenorm prune`"),
        (["plan", "S", "--drop", "1", "--budget", "1.1"], "belong to --guard"),
        (["plan", "S", "--drop", "1", "--guard", "--graph", "G", "--budget", "0.9"], "a factor on perplexity"),
        (["plan", "S", "--drop", "1", "--text", "T"], "belong to --guard"),
        (["prune", "G", "--layers", "1", "-o", "O", "--repair", "cubic"], "write none, bias, mlp, linear"),
        (["prune", "G", "--layers", "1", "-o", "O", "--text", "T"], "is for --repair"),
        (["prune", "G", "--layers", "1", "-o", "O", "--repair", "bias", "--no-shipped-text"], "leaves no text"),
        (["prune", "G", "--layers", "9", "-o", "O", "--repair", "bias"], "layer 9 is not there to repair"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests_get_one_line(arguments: list[str], said: str, exported, tmp_path: Path, capsys) -> None:
    spec, graph, _ = exported("llama-gqa")
    assert main(["score", spec.path, "-o", str(tmp_path), "--quiet"]) == 0
    capsys.readouterr()
    places = {"S": str(tmp_path / "scores.json"), "G": str(graph), "O": str(tmp_path / "out"), "T": "nowhere.txt"}
    code = main([places.get(argument, argument) for argument in [*arguments, "--quiet"]])
    captured = capsys.readouterr()
    assert code in {3, 5}
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_repair_of_the_same_layers_is_measured_anew(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model, windows = StreamModel(graph), tokens(6)
    repairs = [fit_repairs(model, tokens(24), (1,), parse_repair(kind)) for kind in ("bias", "linear")]
    meter, fresh = Meter(model, windows), Meter(model, windows)
    for fitted in repairs:
        meter.adopt(frozenset({1}), fitted)
    fresh.adopt(frozenset({1}), repairs[1])
    assert meter.cost(3).kl_nats == pytest.approx(fresh.cost(3).kl_nats, rel=1e-6)


def test_half_of_the_measured_windows_repeat_themselves() -> None:
    windows = tokens(40, length=32)
    split = split_windows(windows, "random tokens")
    assert len(split.measured) == MEASURED_WINDOWS
    for number, window in enumerate(split.measured):
        assert bool((window[:16] == window[16:]).all()) == (number % 2 == 1)
    # Nothing measured was fitted on.
    assert not {tuple(window[:16]) for window in split.measured} & {tuple(window[:16]) for window in split.fitted}
