"""Plans that are chosen by measuring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from calibration_cases import corpus, tokens

from gatenorm_export.calibrating import GuardRequest, StreamModel, guard_layers
from gatenorm_export.calibrating.fitting import fit_each
from gatenorm_export.calibrating.guard import FIT_EVERY
from gatenorm_export.calibrating.metering import Meter
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, RefusedError
from gatenorm_export.repairs import parse_repair


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
    if kind == "linear":
        meter.adopt(frozenset(plain.layers), fit_each(model, windows.fitted[::FIT_EVERY], ranked, repair))
        assert plain.repaired_ppl_ratio == pytest.approx(meter.cost(None).ppl / meter.base_ppl, rel=1e-6)
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
    # A line for what decides them, and one for each.
    assert len(cache.read_text().splitlines()) == 1 + 3
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
        (["plan", "S", "--drop", "1", "--guard", "--graph", "G", "--budget", "0.9"], "0.9 is too small"),
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
    # Whether the graph has a layer 9 is no matter of the command line.
    assert code == (ExitCode.REFUSED if "9" in arguments else ExitCode.USAGE)
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
