"""The sweep: what it measures equals the gated graph, nothing is measured twice, and every cell is in the picture."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_zoo import row

from gatenorm_export.calibrating import CorpusRequest, StreamModel, load_corpus
from gatenorm_export.calibrating.fitting import fit_repairs
from gatenorm_export.calibrating.metering import Meter
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.records import LayerScores, SweepCell, SweepFigures, SweepReport
from gatenorm_export.repairs import Repair, Repaired
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model
from gatenorm_export.sweeping import front_sentence, pareto_front, parse_rank, sweep_svg
from gatenorm_export.sweeping.front import saving_of
from gatenorm_export.sweeping.layout import Box, place_labels
from gatenorm_export.sweeping.ranking import cosine_order, guard_order, weight_order

N = 4
RANKS = "gate-norm,last,random:0,cosine,guard"


def words(n: int, seed: int) -> str:
    return " ".join(f"w{4 + int(word)}" for word in np.random.default_rng(seed).integers(0, 60, n))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, two texts, and what the first sweep of the checkpoint makes: base/, scores.json, sweep.json."""
    folder = tmp_path_factory.mktemp("sweep")
    row("llama-gqa").save(folder / "model")
    (folder / "calibration.txt").write_text(words(1100, 1))
    (folder / "text.txt").write_text(words(300, 2))
    call = ["sweep", folder / "model", "-o", folder, "--text", folder / "text.txt", "--drops", "1", "--rank"]
    assert main([*map(str, call), "gate-norm", "--no-latency", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    """A finished sweep without latency; its report's folder."""
    arguments = ["--drops", "0,2,9", "--rank", RANKS, "--repair", "none,bias", "--no-latency", "--quiet", "--json"]
    assert main([*map(str, command(place, place / "out")), *arguments]) == 0
    return place / "out"


def command(place: Path, out: Path) -> list[object]:
    calibration = ["--calibration-text", place / "calibration.txt", "--no-shipped-text"]
    return ["sweep", place / "base", "-o", out, "--text", place / "text.txt", *calibration]


@pytest.fixture(scope="module")
def model(place: Path) -> StreamModel:
    return StreamModel(place / "base" / "model.onnx")


@pytest.fixture(scope="module")
def corpus(place: Path):
    return load_corpus(CorpusRequest(place / "calibration.txt", shipped=False), place / "base", None)


@pytest.fixture(scope="module")
def report(swept: Path) -> SweepReport:
    return SweepReport.load(swept / "sweep.json")


def of(report: SweepReport, name: str) -> SweepCell:
    return next(cell for cell in report.cells if cell.name == name)


def judged(logits: np.ndarray, base: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """KL(base || logits) over all positions and perplexity, by torch."""
    import torch

    p, q = (torch.from_numpy(array).double().log_softmax(-1) for array in (base, logits))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    true = torch.from_numpy(tokens)[:, 1:, None]
    return kl, float(torch.exp(-q[:, :-1].gather(-1, true).mean()))


@pytest.mark.parametrize("layers", [(), (1,), (0, 3), tuple(range(N))], ids=str)
def test_the_meter_equals_the_gated_graph(place: Path, model: StreamModel, layers: tuple[int, ...]) -> None:
    import onnx_ir as ir
    import onnxruntime

    from graph_passes import GateAttention

    graph = ir.load(place / "base" / "model.onnx")
    GateAttention()(graph)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    tokens = np.random.default_rng(3).integers(4, 64, (3, 48))
    gates = np.ones(N, np.float32)
    gates[list(layers)] = 0.0
    feed = model.feeds(tokens)
    base, gated = (
        session.run(["logits"], feed | {"attention_gate": gate})[0] for gate in (np.ones(N, np.float32), gates)
    )
    meter = Meter(model, tokens)
    # A plan before this one must leave no trace.
    meter.adopt(frozenset({2}), {})
    meter.adopt(frozenset(layers), {})
    cost = meter.cost(None)
    kl, ppl = judged(gated, base, tokens)
    assert meter.base_ppl == pytest.approx(judged(base, base, tokens)[1], rel=1e-5)
    assert (cost.kl_nats, cost.ppl) == pytest.approx((kl, ppl), rel=1e-4, abs=1e-9)
    if layers:
        assert kl > 1e-3


def test_a_cell_is_what_its_pruned_graph_computes(
    place: Path, model: StreamModel, corpus, report: SweepReport, tmp_path: Path
) -> None:
    """With a repair too: the sweep's own figures against ONNX Runtime on a graph that is pruned and repaired."""
    import onnxruntime

    from gatenorm_export.comparing.text import load_text, tokenize
    from gatenorm_export.pruning import prune_graph

    cell = of(report, "last/bias/2")
    repair = Repair("bias")
    fitted = fit_repairs(model, corpus.fitted, cell.layers, repair)
    tokens = tokenize(load_text(place / "text.txt"), place / "base", None, limit=256).reshape(1, 256)
    logits = []
    for name, layers, repaired in (
        ("base", (), None),
        ("cut", cell.layers, Repaired(repair, fitted, "", "", corpus.fitted.size)),
    ):
        prune_graph(
            place / "base" / "model.onnx",
            tmp_path / f"{name}.onnx",
            layers=layers,
            repaired=repaired,
            kv_names="keep",
        )
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"))
        wanted = {entry.name for entry in session.get_inputs()}
        feed = {key: value for key, value in model.feeds(tokens).items() if key in wanted}
        logits.append(session.run(["logits"], feed)[0])
    kl, ppl = judged(logits[1], logits[0], tokens)
    assert cell.figures is not None
    assert (cell.figures.kl_nats, cell.figures.ppl) == pytest.approx((kl, ppl), rel=1e-4)
    assert cell.figures.n_repair_parameters == 2 * 64
    assert cell.figures.kl_nats != pytest.approx(of(report, "last/none/2").figures.kl_nats, rel=1e-3)


def test_rankings_without_text(place: Path) -> None:
    scores, graph = LayerScores.load(place / "scores.json"), place / "base" / "model.onnx"
    by_score = weight_order(parse_rank("gate-norm"), range(N), scores, N, graph)
    assert list(by_score.values) == sorted(entry.score for entry in scores.layers)
    assert by_score.layers == tuple(sorted(range(N), key=lambda layer: scores.layers[layer].score))
    assert weight_order(parse_rank("last"), range(N), None, N, graph).layers == (3, 2, 1, 0)
    # Of a graph that lacks layers only the others can go.
    assert weight_order(parse_rank("last"), (0, 3), None, N, graph).layers == (3, 0)
    assert set(weight_order(parse_rank("gate-norm"), (0, 3), scores, N, graph).layers) == {0, 3}
    seeds = [weight_order(parse_rank(f"random:{seed}"), range(20), None, 20, graph).layers for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert sorted(seeds[2]) == list(range(20))
    with pytest.raises(RefusedError, match="the scores have 4"):
        weight_order(parse_rank("gate-norm"), range(5), scores, 5, graph)


def test_cosine_is_what_the_exposed_stream_says(place: Path, model: StreamModel) -> None:
    import onnx_ir as ir
    import onnxruntime
    import torch

    from graph_passes import ExposeResiduals

    graph = ir.load(place / "base" / "model.onnx")
    ExposeResiduals()(graph)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    tokens = np.random.default_rng(4).integers(4, 64, (10, 20))
    means = []
    for layer in range(N):
        names = [f"attention.{layer}.before", f"attention.{layer}.after"]
        before, after = (torch.from_numpy(array).double() for array in session.run(names, model.feeds(tokens)))
        means.append(float(1 - torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()))
    order = cosine_order(model, tokens)
    assert order.layers == tuple(np.argsort(means))
    assert order.values == pytest.approx(sorted(means), rel=1e-4)


def test_one_guarded_search_serves_all_smaller_numbers(model: StreamModel, corpus, report: SweepReport) -> None:
    longest = guard_order(model, corpus, 3, Repair("bias"))
    for count in (1, 2):
        assert guard_order(model, corpus, count, Repair("bias")).layers == longest.layers[:count]
    assert of(report, "guard/bias/2").layers == tuple(sorted(longest.layers[:2]))
    # The first step is the best single removal, found by trying all.
    costs = []
    meter = Meter(model, corpus.measured)
    for layer in range(N):
        meter.adopt(frozenset({layer}), {})
        costs.append(meter.cost(None).kl_nats)
    assert guard_order(model, corpus, 1, Repair()).layers == (int(np.argmin(costs)),)


def test_the_report_has_every_cell(report: SweepReport) -> None:
    assert len(report.cells) == 5 * 2 * 3
    for cell in report.cells:
        if cell.drop == 9:
            assert cell.reason == "cannot drop 9 attention sublayers: there are 4"
            continue
        assert cell.figures is not None
        assert len(cell.layers) == cell.drop
        assert cell.figures.kv_share == pytest.approx((N - cell.drop) / N)
        assert cell.figures.ppl_ratio == pytest.approx(cell.figures.ppl / report.base_ppl)
        if not cell.drop:
            assert cell.figures.ppl_ratio == pytest.approx(1.0, rel=1e-6)
            assert cell.figures.n_parameters == report.base.n_parameters
    assert of(report, "last/none/2").layers == (2, 3)


def test_equal_cells_are_measured_once(report: SweepReport) -> None:
    by_key: dict[str, list[SweepFigures]] = {}
    for cell in report.cells:
        if cell.figures is not None:
            by_key.setdefault(cell.key, []).append(cell.figures)
    empty = next(cell.key for cell in report.cells if not cell.drop)
    assert len(by_key[empty]) == 10
    # Seconds scatter, so equal ones are one measurement.
    assert all(len({figures.seconds for figures in same}) == 1 for same in by_key.values())
    assert len({figures.seconds for same in by_key.values() for figures in same}) == len(by_key)


def test_a_second_call_measures_nothing(
    place: Path, swept: Path, report: SweepReport, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("gatenorm_export.sweeping.cells.Bench", never)
    rest = ["--drops", "2,0", "--rank", "guard,cosine,gate-norm", "--repair", "bias", "--no-latency", "--json"]
    out = swept.parent / "again"
    shutil.copytree(swept, out)
    assert main([*map(str, command(place, out)), *rest]) == 0
    shown = capfd.readouterr()
    assert "are measured already, reusing them" in shown.err
    again = SweepReport.load(out / "sweep.json")
    assert json.loads(shown.out) == again.to_object()
    assert [cell.name for cell in again.cells][:3] == ["guard/bias/2", "guard/bias/0", "cosine/bias/2"]
    assert all(cell == of(report, cell.name) for cell in again.cells)
    # What was not asked for this time is kept for the next.
    assert len(again.cells) + len(again.earlier) == sum(cell.figures is not None for cell in report.cells)
    with pytest.raises(AssertionError, match="measured again"):
        main([*map(str, command(place, out)), "--drops", "3", "--rank", "last", "--repair", "bias", "-q"])


def test_an_interrupted_sweep_goes_on_where_it_was(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Latency is measured here, and the third pruned graph is where the user gives up."""
    from gatenorm_export.sweeping import measuring

    pruned = []
    prune = measuring.prune_graph

    def counted(*args: object, **options: object) -> object:
        pruned.append(options["layers"])
        if len(pruned) == 3:
            raise KeyboardInterrupt
        return prune(*args, **options)

    monkeypatch.setattr(measuring, "prune_graph", counted)
    call = ["sweep", place / "base", "-o", tmp_path, "--text", place / "text.txt", "--rank", "last", "-q"]
    untimed, call = ([*map(str, call), "--drops", drops] for drops in ("1", "1,2,3"))
    # Figures without latency do not serve a sweep that measures it.
    assert main([*untimed, "--no-latency"]) == 0
    assert main(call) == ExitCode.INTERRUPTED
    first = SweepReport.load(tmp_path / "sweep.json")
    assert [cell.drop for cell in first.cells] == [1]
    assert not (tmp_path / "work").exists()
    capfd.readouterr()
    assert main(call) == 0
    assert pruned == [(3,), (3,), (2, 3), (2, 3), (1, 2, 3)]
    shown = capfd.readouterr().out
    second = SweepReport.load(tmp_path / "sweep.json")
    assert second.cells[:1] == first.cells
    for cell in second.cells:
        latency = cell.figures.latency
        assert [(line.phase, line.sequence) for line in latency.rows] == [("prefill", 256), ("decode", 256)]
        assert f"{latency.decode_speedup:.3f}" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json", "sweep.svg"]
    # Those with it serve a sweep that does not.
    assert main([*call, "--no-latency"]) == 0
    assert len(pruned) == 5


def test_changed_inputs_start_anew_and_say_so(
    place: Path, swept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rest = ["--drops", "1", "--rank", "last", "--no-latency"]
    shutil.copy(swept / "sweep.json", tmp_path / "sweep.json")
    (tmp_path / "other.txt").write_text(words(300, 7))
    call = [*map(str, command(place, tmp_path)), *rest, "--repair", "bias"]
    call[call.index(str(place / "text.txt"))] = str(tmp_path / "other.txt")
    assert main(call) == 0
    assert "changed since: the text that quality is judged on; starting anew" in capfd.readouterr().err
    anew = SweepReport.load(tmp_path / "sweep.json")
    assert not anew.earlier
    assert anew.base_ppl != SweepReport.load(swept / "sweep.json").base_ppl
    # The same graph with one weight changed.
    import onnx_ir as ir

    shutil.copytree(place / "base", tmp_path / "base")
    graph = ir.load(place / "base" / "model.onnx")
    weight = max((v for v in graph.graph.initializers.values()), key=lambda value: value.const_value.nbytes)
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)
    ir.save(graph, tmp_path / "base" / "model.onnx")
    (tmp_path / "base" / "manifest.json").unlink()
    call[1] = str(tmp_path / "base")
    assert main(call) == 0
    assert "changed since: the graph; starting anew" in capfd.readouterr().err
    (tmp_path / "sweep.json").write_text('{"kind": "shopping"}')
    assert main(call) == ExitCode.BAD_INPUT
    assert "not the record of a sweep; choose another output" in capfd.readouterr().err
    assert (tmp_path / "sweep.json").read_text() == '{"kind": "shopping"}'


def test_a_checkpoint_is_scored_and_exported_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((place / "base" / "manifest.json").read_text())["kind"] == "exported"
    shutil.copytree(place / "base", tmp_path / "base")
    for name in ("scores.json", "sweep.json"):
        shutil.copy(place / name, tmp_path / name)
    monkeypatch.setattr("gatenorm_export.exporting.export_model", None)
    monkeypatch.setattr("gatenorm_export.scoring.score_model", None)
    call = ["sweep", place / "model", "-o", tmp_path, "--text", place / "text.txt", "--drops", "1", "--rank"]
    call = [*map(str, call), "gate-norm", "--no-latency"]
    assert main(call) == 0
    err = " ".join(capfd.readouterr().err.split())
    assert "export: unchanged inputs, reusing" in err
    assert "score: unchanged inputs, reusing" in err
    assert "gate-norm/none/1: layers" in err
    call[1] = str(row("llama-gqa").save(tmp_path / "other", seed=5))
    assert main([*call, "-q"]) == ExitCode.REFUSED
    assert "holds the graph of another model" in capfd.readouterr().err


def test_a_cell_that_fails_does_not_stop_the_others(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A layer that the surgery refuses, and a removal that guard calls ruinous."""
    from gatenorm_export.calibrating import guard
    from gatenorm_export.sweeping import measuring

    prune = measuring.prune_graph

    def picky(*args: object, **options: object) -> object:
        if 2 in options["layers"]:
            raise RefusedError("model.onnx: layer 2 is needed")
        return prune(*args, **options)

    monkeypatch.setattr(measuring, "prune_graph", picky)
    monkeypatch.setattr(guard, "JUMP_LIMIT", 0.0)
    rest = ["--drops", "1,2", "--rank", "last,guard", "--no-latency"]
    call = [*map(str, command(place, tmp_path)), *rest]
    assert main([*call, "-q"]) == 0
    shown = capfd.readouterr().out
    report = SweepReport.load(tmp_path / "sweep.json")
    assert [cell.figures is not None for cell in report.cells] == [True, False, False, False]
    assert of(report, "last/none/2").reason == "model.onnx: layer 2 is needed"
    assert "removal 1, layer" in of(report, "guard/none/2").reason
    assert "not measured: last/none/2: model.onnx: layer 2 is needed" in " ".join(shown.split())
    assert report.kv_front == ("last/none/1",)
    # The failed are tried again; the search is not made again, and what it calls ruined is measured on request.
    monkeypatch.setattr(measuring, "prune_graph", prune)
    monkeypatch.setattr("gatenorm_export.sweeping.cells.guard_order", None)
    assert main([*call, "-q", "--despite-failure"]) == 0
    assert all(cell.figures is not None for cell in SweepReport.load(tmp_path / "sweep.json").cells)


BAD = {
    "ranking": (["--rank", "best"], ExitCode.USAGE, "there are gate-norm, last, random:SEED, cosine, guard"),
    "seed": (["--rank", "random"], ExitCode.USAGE, "no such ranking"),
    "repair": (["--rank", "last", "--repair", "glue"], ExitCode.USAGE, "write none, bias"),
    "drops": (["--rank", "last", "--drops", "1,-2"], ExitCode.USAGE, "'-2' is no number of layers"),
    "twice": (["--rank", "last", "--drops", "1,01"], ExitCode.USAGE, "1 is named twice"),
    "same rank": (["--rank", "last,last"], ExitCode.USAGE, "last is named twice"),
    "tokens": (["--rank", "last", "--max-text-tokens", "0"], ExitCode.USAGE, "0 is too small; give 1 or more"),
    "few tokens": (["--rank", "last", "--max-text-tokens", "9"], ExitCode.BAD_INPUT, "too few to judge by"),
    "unused text": (["--rank", "last", "--calibration-text", "x"], ExitCode.USAGE, "is for cosine, guard"),
    "unused scores": (["--rank", "last", "--scores", "x"], ExitCode.USAGE, "is for the ranking gate-norm"),
    "no scores": (["--rank", "gate-norm", "--scores", "absent.json"], ExitCode.BAD_INPUT, "absent.json"),
    "too many": (["--rank", "last", "--drops", "9"], ExitCode.REFUSED, "no cell could be measured; last/none/9"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_clear_line(place: Path, tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, expected, complaint = BAD[case]
    call = ["sweep", str(place / "base"), "-o", str(tmp_path / "out"), "--no-latency", "--quiet", *arguments]
    assert main(call) == expected
    shown = capfd.readouterr()
    assert complaint in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out" / "sweep.svg").exists()


def test_scores_must_be_of_the_graph(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "base", tmp_path / "alone" / "base")
    call = ["sweep", str(tmp_path / "alone" / "base"), "-o", str(tmp_path / "out"), "--drops", "1", "-q"]
    assert main(call) == ExitCode.BAD_INPUT
    assert "the ranking gate-norm needs scores" in capfd.readouterr().err
    other = resolve_model(str(row("llama-gqa").save(tmp_path / "other", seed=5)))
    score_model(other).save(tmp_path / "alone" / "scores.json")
    assert main(call) == ExitCode.REFUSED
    assert "the scores are of" in capfd.readouterr().err


def a_cell(name: str, ratio: float, share: float) -> SweepCell:
    rank, repair, drop = name.split("/")
    figures = SweepFigures(
        ppl=ratio,
        ppl_ratio=ratio,
        kl_nats=0.0,
        kv_bytes_per_token=1,
        kv_share=share,
        n_parameters=1,
        n_repair_parameters=0,
        latency=None,
        seconds=1.0,
    )
    return SweepCell(rank=rank, repair=repair, drop=int(drop), layers=(), key=name, figures=figures)


def test_the_front_is_what_no_cell_beats() -> None:
    cells = [
        a_cell("last/none/1", 1.1, 0.9),
        a_cell("guard/none/1", 1.05, 0.9),
        a_cell("cosine/none/1", 1.05, 0.9),
        a_cell("guard/none/2", 1.3, 0.8),
        a_cell("last/none/2", 1.6, 0.8),
        a_cell("last/none/3", 1.2, 0.7),
        a_cell("guard/none/4", 1.2, 0.75),
    ]
    front = [cell.name for cell, _, _ in pareto_front(cells, saving_of)]
    assert front == ["guard/none/1", "cosine/none/1", "last/none/3"]
    sentence = front_sentence(cells)
    assert "against the KV cache saved: guard/none/1, cosine/none/1, last/none/3" in sentence
    assert "speed" not in sentence


def test_the_chart_holds_every_cell(report: SweepReport, swept: Path) -> None:
    picture = (swept / "sweep.svg").read_text()
    assert picture == sweep_svg(report)
    drawn = set(re.findall(r'data-panel="cache" data-cell="([^"]+)"', picture))
    assert drawn == {cell.name for cell in report.cells if cell.figures is not None}
    assert "latency was not measured" in picture
    foot = re.sub(r"<[^>]+>", " ", picture)
    for cell in report.cells:
        assert cell.figures is not None or cell.name in foot
    for name in (*RANKS.split(","), "repair none", "repair bias"):
        assert f">{name}</text>" in picture
    assert not re.search(r"""(src|href)\s*=""", picture)


def test_labels_keep_clear_of_markers_and_of_each_other() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform(20, 380, (40, 2))]
    markers = [Box.around(x, y, 8.0) for x, y in points]
    frame = Box(0, 0, 400, 400)
    labels = place_labels(dict.fromkeys(points[:20], "16"), markers, frame)
    assert len(labels) == 20
    for index, label in enumerate(labels):
        assert label.box.within(frame)
        others = [*markers, *(other.box for other in labels[:index])]
        assert not any(label.box.meets(other) for other in others)


def test_unknown_rankings_are_refused_by_name() -> None:
    for text in ("", "gatenorm", "random:", "random:x", "guard:1"):
        with pytest.raises(InputError, match="there is no such ranking"):
            parse_rank(text)
    assert str(parse_rank(" random:12 ")) == "random:12"
