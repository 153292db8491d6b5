"""lm-eval on ONNX graphs: equal to lm-eval's own Hugging Face class, on the base and on pruned models."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from local_tasks import TASKS, write_tasks
from model_zoo import make_tokenizer

from gatenorm_export.building import Flavour, Gpu, ShapeRequest, make_profiles, opening
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, GateNormError, InputError, RefusedError
from gatenorm_export.evaluating import EvaluationRequest, evaluate_models, find_model
from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.progress import OnStderr
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import EngineArtifact, Evaluation

pytest.importorskip("lm_eval")

from gatenorm_export.evaluating import decoder as decoders
from gatenorm_export.evaluating import engine as engines
from gatenorm_export.evaluating import evaluate
from gatenorm_export.evaluating import tasks as task_files
from gatenorm_export.evaluating.decoder import GraphDecoder
from gatenorm_export.evaluating.generation import honours_left_padding
from gatenorm_export.evaluating.lm import DecoderLM

DROPPED = (1, 3)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def graphs(exported, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """Removed layers -> the folder of the graph without them."""
    _, base, _ = exported("llama-gqa")
    found = {(): base.parent}
    for layers in (DROPPED, (0, 1, 2, 3)):
        found[layers] = tmp_path_factory.mktemp("graphs") / f"without-{len(layers)}"
        prune_graph(base, found[layers], layers=layers)
    return found


@pytest.fixture(scope="module")
def loaded(local: Path) -> dict[str, Any]:
    return task_files.load_tasks(TASKS, include=local, num_fewshot=None)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(previous)


def run(lm: Any, loaded: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """lm-eval's metrics by task, and each document's answers."""
    from lm_eval.evaluator import evaluate

    answer = evaluate(lm, loaded, log_samples=True)
    samples = {
        name: [sample["resps"] for sample in sorted(documents, key=lambda sample: sample["doc_id"])]
        for name, documents in answer["samples"].items()
    }
    return answer["results"], samples


def lm_of(decoder: Any, batch: int = 3, max_length: int = 128) -> DecoderLM:
    return DecoderLM(decoder, make_tokenizer(), max_length=max_length, batch_size=batch, eos_token_ids=(1,))


@pytest.fixture(scope="module")
def reference(exported, loaded: dict[str, Any]) -> Callable[[tuple[int, ...]], tuple[Any, Any]]:
    """Zeroed layers -> what lm-eval's own HFLM says of the framework model."""
    from lm_eval.models.huggingface import HFLM

    spec, _, _ = exported("llama-gqa")
    model, tokenizer = load_framework_model(spec)
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def answers(layers: tuple[int, ...]) -> tuple[Any, Any]:
        if layers not in known:
            with zeroed_attention(model, spec, layers):
                known[layers] = run(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2), loaded)
        return known[layers]

    return answers


def difference(samples: dict[str, list[Any]], expected: dict[str, list[Any]]) -> tuple[float, int]:
    """The largest difference of a log likelihood in nats, and how many verdicts and texts differ."""
    nats, others = 0.0, 0
    for task, documents in expected.items():
        for mine, theirs in zip(samples[task], documents, strict=True):
            for one, other in zip(np.ravel(np.array(mine, object)), np.ravel(np.array(theirs, object)), strict=True):
                if isinstance(other, float):
                    nats = max(nats, abs(one - other))
                else:
                    others += one != other
    return nats, others


@pytest.mark.parametrize("layers", [(), DROPPED, (0, 1, 2, 3)], ids=str)
def test_results_equal_those_of_lm_evals_own_class(graphs, reference, loaded, layers: tuple[int, ...]) -> None:
    """Every document's log likelihood, greedy verdict and text; then every metric and standard error."""
    expected, expected_samples = reference(layers)
    decoder = GraphDecoder(graphs[layers] / "model.onnx")
    assert decoder.cached == (len(layers) < 4)
    results, samples = run(lm_of(decoder), loaded)
    nats, others = difference(samples, expected_samples)
    assert nats < TOLERANCE
    assert others == 0
    assert set(samples) == set(TASKS)
    for task, metrics in expected.items():
        for name, value in metrics.items():
            assert results[task][name] == (value if isinstance(value, str) else pytest.approx(value, rel=TOLERANCE))


def test_a_wrong_graph_is_noticed(graphs, reference, loaded) -> None:
    """The base graph where two layers are zeroed, and a graph without two other ones: neither passes."""
    _, expected = reference(DROPPED)
    for wrong in ((), (0, 1, 2, 3)):
        nats, others = difference(run(lm_of(GraphDecoder(graphs[wrong] / "model.onnx")), loaded)[1], expected)
        assert nats > 100 * TOLERANCE
        assert others > 0


def test_batches_and_pieces_do_not_change_the_answers(graphs, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs[DROPPED] / "model.onnx"
    alone = run(lm_of(GraphDecoder(graph), batch=1), loaded)[1]
    calls: list[tuple[int, int]] = []

    class Counted(GraphDecoder):
        def __call__(self, tokens: np.ndarray, mask: np.ndarray, *, keep: bool) -> np.ndarray:
            calls.append((tokens.shape[1], mask.shape[1]))
            return super().__call__(tokens, mask, keep=keep)

    # Room for 35 positions of a vocabulary of 128 in fp32: 7 tokens of each of five rows.
    monkeypatch.setattr(decoders, "LOGITS_BYTES", 35 * 128 * 4)
    nats, others = difference(run(lm_of(Counted(graph), batch=5), loaded)[1], alone)
    assert nats < TOLERANCE
    assert others == 0
    assert (7, 128) not in calls
    assert max(step for step, length in calls if length > 120) <= 35
    assert (7, 14) in calls


def test_a_graph_that_ignores_padding_is_found_out(graphs, reference, loaded) -> None:
    class Deaf(GraphDecoder):
        def __call__(self, tokens: np.ndarray, mask: np.ndarray, *, keep: bool) -> np.ndarray:
            return super().__call__(tokens, np.ones_like(mask), keep=keep)

    graph = graphs[()] / "model.onnx"
    prompt = list(range(20, 26))
    assert honours_left_padding(GraphDecoder(graph), prompt, 30)
    assert not honours_left_padding(Deaf(graph), prompt, 30)
    nats, others = difference(run(lm_of(Deaf(graph), batch=5), loaded)[1], reference(())[1])
    assert nats < TOLERANCE
    assert others == 0


def test_what_ends_a_generation_is_the_models_own_word(exported, loaded) -> None:
    """generation_config.json may name end tokens that the tokenizer does not know as such."""
    from lm_eval.models.huggingface import HFLM

    spec, graph, _ = exported("llama-gqa")
    model, tokenizer = load_framework_model(spec)
    only = {**loaded, "tasks": {"go_on": loaded["tasks"]["go_on"]}}
    plain = run(HFLM(pretrained=model, tokenizer=tokenizer), only)[1]["go_on"]
    end = tokenizer.convert_tokens_to_ids(plain[0][0][0].split()[2])
    model.generation_config.eos_token_id = [1, end]
    expected = run(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2), only)[1]["go_on"]
    assert expected != plain
    ours = DecoderLM(GraphDecoder(graph), tokenizer, max_length=128, batch_size=3, eos_token_ids=(1, end))
    assert run(ours, only)[1]["go_on"] == expected


def test_special_tokens_are_those_of_lm_evals_own_class(exported) -> None:
    """Also for a tokenizer that puts a BOS before every text, and for texts that begin with one."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    spec, graph, _ = exported("llama-gqa")
    model, _ = load_framework_model(spec)
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs = HFLM(pretrained=model, tokenizer=tokenizer)
    ours = DecoderLM(GraphDecoder(graph), tokenizer, max_length=128)
    assert ours.prefix_token_id == theirs.prefix_token_id == 0
    assert ours.max_gen_toks == theirs.max_gen_toks
    assert ours.eot_token_id == theirs.eot_token_id
    for text in ("w4 w5", "<s> w4 w5", "w4 ", "", "unknown"):
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special)
    assert ours.tok_encode("w4") == [0, 4]
    for pair in (("w4 w5", " w6"), ("w4 ", "w6"), ("<s> w4", " w6 w7")):
        assert ours._encode_pair(*pair) == theirs._encode_pair(*pair)


def test_model_facts_come_from_the_folder(graphs, tmp_path: Path) -> None:
    model = find_model(graphs[DROPPED])
    assert (model.label, model.dropped, model.max_length, model.eos_token_ids) == ("without-2", DROPPED, 128, (1,))
    bare = tmp_path / "graph.onnx"
    bare.write_bytes((graphs[()] / "model.onnx").read_bytes())
    with pytest.raises(InputError, match=r"holds no tokenizer.*--tokenizer"):
        find_model(bare)
    found = find_model(bare, tokenizer=graphs[()])
    assert (found.label, found.dropped, found.max_length) == ("graph.onnx", None, 128)
    assert found.sha256 == hashlib.sha256(bare.read_bytes()).hexdigest() != model.sha256
    assert find_model(graphs[()], max_length=64).max_length == 64


def test_models_stand_side_by_side(graphs, local: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, pruned = graphs[()], graphs[DROPPED]
    tasks = ["--tasks", "both,words,prose", "--include-path", str(local), "--batch", "4"]
    words = ["eval", str(base), str(pruned), "-o", str(tmp_path), *tasks]
    assert main([*words, "--json", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    record = Evaluation.load(tmp_path / "eval.json")
    assert json.loads(out) == json.loads((tmp_path / "eval.json").read_text())
    assert record.command == " ".join(["gatenorm", *words, "--json", "--quiet"])
    first, second = record.models
    assert (first.dropped, second.dropped) == ((), DROPPED)
    by_name = {task.task: task for task in first.tasks}
    assert {name: task.group for name, task in by_name.items()} == {
        "both": None, "choices": "both", "words": "both", "prose": None,
    }  # fmt: skip
    assert (by_name["choices"].version, by_name["choices"].n_samples, by_name["choices"].n_shot) == ("2.0", 8, 0)
    assert {metric.name for metric in by_name["choices"].metrics} == {"acc", "acc_norm"}
    assert by_name["choices"].metrics[0].stderr is not None
    assert by_name["prose"].metrics[0].higher_is_better is False
    assert first.n_acc == 1
    assert first.mean_acc == by_name["both"].metrics[0].value
    assert second.mean_acc_change == pytest.approx(second.mean_acc - first.mean_acc)
    assert main(["eval", str(base), str(pruned), *tasks[:1], "choices,words", *tasks[2:], "--limit", "2"]) == 0
    out, err = capfd.readouterr()
    assert "the first 2 documents of each" in out
    assert "mean of 2" in out
    assert "without-2" in out
    assert "load the tasks" in err
    assert "Running" not in out + err


INTERRUPTED = ["--tasks", "both,prose,go_on", "--batch", "2"]


def without_seconds(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    for model in record["models"]:
        assert model.pop("seconds") > 0
    record.pop("command")
    return record


class Interrupting:
    """Counts the calls of the decoders, and stops them as Ctrl-C does behind so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.most = 0, 10**9
        run = GraphDecoder.__call__

        def counted(decoder: GraphDecoder, *arguments: Any, **named: Any) -> np.ndarray:
            if self.calls == self.most:
                raise KeyboardInterrupt
            self.calls += 1
            return run(decoder, *arguments, **named)

        monkeypatch.setattr(GraphDecoder, "__call__", counted)

    def after(self, most: int) -> None:
        self.calls, self.most = 0, most


@pytest.mark.parametrize("out", ["eval.json", "out"])
def test_an_interrupted_evaluation_goes_on_where_it_was(
    graphs, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], out: str
) -> None:
    """Stopped again and again, in likelihoods, windows and texts of both models: nothing is computed twice."""
    models = [str(graphs[()]), str(graphs[DROPPED])]
    words = ["eval", *models, *INTERRUPTED, "--include-path", str(local)]
    ran = Interrupting(monkeypatch)
    assert main([*words, "-o", str(tmp_path / "at-once"), "-q"]) == 0
    at_once = ran.calls
    whole = without_seconds(tmp_path / "at-once" / "eval.json")
    assert [path.name for path in (tmp_path / "at-once").iterdir()] == ["eval.json"]
    capfd.readouterr()
    path = tmp_path / "again" / out
    calls = lost = 0
    for _ in range(100):
        ran.after(25)
        code = main([*words, "-o", str(path)])
        calls += ran.calls
        if code == 0:
            break
        assert code == ExitCode.INTERRUPTED
        assert not list(tmp_path.glob("again/**/eval.json"))
        lost += 1
    assert lost > 3
    # A batch of texts, which takes as many calls as it has tokens, and the probe for padding are begun again.
    assert at_once < calls <= at_once + 15 * lost
    # A path may be long, and lines are wrapped.
    said = " ".join(capfd.readouterr().err.split())
    assert "log likelihoods: " in said
    assert "texts: " in said
    assert "were computed before; going on" in said
    written = path if out.endswith(".json") else path / "eval.json"
    assert without_seconds(written) == whole
    assert [found.name for found in written.parent.iterdir()] == [written.name]


def test_another_evaluation_finds_nothing_of_an_interrupted_one(
    graphs, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Interrupting(monkeypatch)

    def evaluate_with(*options: str, model: Path = graphs[()], stop: int = 10**9) -> int:
        ran.after(stop)
        common = ["eval", str(model), "--tasks", "words,prose", "--include-path", str(local), "-q"]
        main([*common, "-o", str(tmp_path / "eval.json"), *options])
        return ran.calls

    at_once = evaluate_with()
    for options in (["--batch", "2"], ["--max-length", "100"], ["--limit", "3"]):
        other = evaluate_with(*options)
        evaluate_with(stop=at_once - 1)
        assert (tmp_path / ".eval.json.eval-so-far").exists()
        assert evaluate_with(*options) == other
    evaluate_with(stop=at_once - 1)
    assert evaluate_with(model=graphs[DROPPED]) == at_once
    evaluate_with(stop=at_once - 1)
    assert evaluate_with() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_of_lm_evals_talk_only_errors_are_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with evaluate._lm_eval_kept_quiet(OnStderr()) as progress:
        sys.stderr.write("chatter\n")
        logging.getLogger("lm_eval.api.task").warning("a warning")
        logging.getLogger("lm_eval.api.task").error("an error")
        with progress.task("our own"):
            pass
    out, err = capfd.readouterr()
    assert (out, err) == ("", "lm-eval: an error\nour own ...\n")


def documents(folder: Path, name: str, **changes: Any) -> Path:
    """A folder with one task of ``write_tasks``, changed."""
    write_tasks(folder)
    for path in folder.glob("*.yaml"):
        if path.stem != name:
            path.unlink()
    task = yaml.safe_load((folder / f"{name}.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, **changes}))
    return folder


DRAWN = {"do_sample": True, "temperature": 0.7}
LIKELIHOOD = {"output_type": "loglikelihood", "doc_to_target": "", "target_delimiter": "", "metric_list": []}
REFUSED: dict[str, tuple[str, dict[str, Any], ExitCode, str]] = {
    "no data file": (
        "words", {"dataset_kwargs": {"data_files": "no/such.jsonl"}}, ExitCode.BAD_INPUT,
        "task words: its data set json cannot be fetched",
    ),
    "no such field": ("words", {"doc_to_text": "{{nothing.there}}"}, ExitCode.BAD_INPUT, "task words: lm-eval cannot"),
    "no such split": ("words", {"test_split": "exam"}, ExitCode.BAD_INPUT, "task words: lm-eval cannot use it"),
    "an empty answer": ("words", {"doc_to_choice": ["w4", " "]}, ExitCode.BAD_INPUT, "continuation of no tokens"),
    "nothing at all": ("prose", LIKELIHOOD, ExitCode.BAD_INPUT, "document 0 has an empty continuation"),
    "an empty prompt": ("go_on", {"doc_to_text": ""}, ExitCode.BAD_INPUT, "has an empty prompt"),
    "sampling": ("go_on", {"generation_kwargs": DRAWN}, ExitCode.REFUSED, "task go_on: draws its tokens at random"),
    "beams": ("go_on", {"generation_kwargs": {"num_beams": 4}}, ExitCode.REFUSED, "asks for num_beams"),
    "no room": ("go_on", {"generation_kwargs": {"max_gen_toks": 128}}, ExitCode.REFUSED, "leaves no room"),
    "code": ("go_on", {"unsafe_code": True}, ExitCode.REFUSED, "runs code that the model writes"),
    "examples": ("words", {"num_fewshot": 0}, ExitCode.REFUSED, "leave --num-fewshot out"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_task_that_cannot_be_run_is_one_clear_line(
    graphs, tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, changes, code, said = REFUSED[case]
    words = ["eval", graphs[()], "--tasks", name, "--include-path", documents(tmp_path / "t", name, **changes), "-q"]
    extra = ["--num-fewshot", 2] if case == "examples" else []
    assert main([str(word) for word in [*words, *extra, "-o", tmp_path / "out"]]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_the_hub_that_cannot_be_fetched_is_named(
    graphs, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'some/data' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    folder = documents(tmp_path, "words", dataset_path="some/data", dataset_name="part")
    assert main(["eval", str(graphs[()]), "--tasks", "words", "--include-path", str(folder), "-q"]) == 3
    assert "task words: its data set some/data part cannot be fetched" in capfd.readouterr().err


def test_an_unknown_task_is_told_its_neighbours(
    graphs, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's own index takes ten seconds to read; here it stands empty."""
    index = task_files.task_manager
    monkeypatch.setattr(task_files, "task_manager", lambda include, *, built_in: index(include, built_in=False))
    with pytest.raises(InputError, match=r"no task is called choicez; near it are choices; --include-path adds"):
        evaluate_models([graphs[()]], EvaluationRequest(tasks=("choicez",), include=local))
    (tmp_path / "broken.yaml").write_text("task: [broken")
    with pytest.raises(InputError, match=r"no task is called broken, and .*broken\.yaml is not a readable task file"):
        evaluate_models([graphs[()]], EvaluationRequest(tasks=("broken",), include=tmp_path))
    with pytest.raises(InputError, match="no such folder; --include-path"):
        evaluate_models([graphs[()]], EvaluationRequest(tasks=("words",), include=tmp_path / "absent"))


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"limit": 0}, {"batch": 0}, {"num_fewshot": -1}, {"max_length": 1}])
def test_senseless_requests_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"no task is named|is too small"):
        EvaluationRequest(**{"tasks": ("words",), **wrong})


def test_a_missing_lm_eval_names_its_extra(
    graphs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("tasks", "lm"):
        monkeypatch.delitem(sys.modules, f"gatenorm_export.evaluating.{name}")
    assert main(["eval", str(graphs[()]), "--tasks", "words", "-q"]) == ExitCode.MISSING_PART
    assert 'pip install "gatenorm[eval]"' in capfd.readouterr().err


class OrtBehindProfiles:
    """Stands in for an engine where no GPU is: ONNX Runtime, refusing what the active profile does not allow."""

    def __init__(self, graph: Path, record: EngineArtifact) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(graph))
        self.outputs = tuple(entry.name for entry in self.session.get_outputs())
        kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        self.dtypes: dict[str, Any] = {entry.name: kinds[entry.type] for entry in self.session.get_inputs()}
        self.profiles = record.profiles
        self.used: set[int] = set()

    def run(self, profile: int, inputs: dict[str, np.ndarray], wanted: tuple[str, ...]) -> list[np.ndarray]:
        self.used.add(profile)
        bounds = {bound.input: bound for bound in self.profiles[profile].bounds}
        assert set(inputs) == set(bounds)
        for name, array in inputs.items():
            low, high = bounds[name].min, bounds[name].max
            assert all(a <= b <= c for a, b, c in zip(low, array.shape, high, strict=True)), (name, array.shape)
            assert array.dtype == self.dtypes[name]
        return [np.asarray(array) for array in self.session.run(list(wanted), inputs)]

    def close(self) -> None:
        del self.session


def engine_record(graph: Path, data: bytes, shapes: ShapeRequest) -> EngineArtifact:
    return EngineArtifact(
        engine="model.engine", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), parent_sha256="",
        flavour="tensorrt-rtx", flavour_version="1.0", precision="fp32", profiles=make_profiles(graph, shapes),
        n_network_layers=1, n_inputs=1, n_outputs=1, build_seconds=1.0, built_on="a GPU",
    )  # fmt: skip


@pytest.mark.parametrize("layers", [(), DROPPED, (0, 1, 2, 3)], ids=str)
def test_an_engine_is_called_within_its_profiles(graphs, reference, loaded, layers: tuple[int, ...]) -> None:
    graph = graphs[layers] / "model.onnx"
    record = engine_record(graph, b"", ShapeRequest(batch=2, prompt=128, context=160))
    runner = OrtBehindProfiles(graph, record)
    decoder = engines.EngineDecoder("model.engine", record, runner)
    nats, others = difference(run(lm_of(decoder, batch=2), loaded)[1], reference(layers)[1])
    assert nats < TOLERANCE
    assert others == 0
    assert runner.used == ({0, 1} if len(layers) < 4 else {0})


def test_an_engine_refuses_what_it_was_not_built_for(graphs, loaded) -> None:
    graph = graphs[()] / "model.onnx"
    record = engine_record(graph, b"", ShapeRequest(batch=2, prompt=64, context=100))
    decoder = engines.EngineDecoder("model.engine", record, OrtBehindProfiles(graph, record))
    with pytest.raises(RefusedError, match=r"takes batches of 2, not 3; give --batch 2"):
        lm_of(decoder, batch=3)
    with pytest.raises(RefusedError, match=r"takes prompts of 64 tokens.*one of 128; .*--prompt 128.*--max-length 64"):
        run(lm_of(decoder, batch=2), loaded)
    run(lm_of(decoder, batch=2, max_length=64), loaded)
    with pytest.raises(RefusedError, match=r"takes contexts of 100 tokens.*--context"):
        decoders.check_reach(decoder, 60, 41)


def test_an_engine_is_checked_before_it_is_loaded(graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "model.engine"
    record = engine_record(graphs[()] / "model.onnx", b"engine", ShapeRequest(prompt=16, context=32))
    version, gpus = "2.0", 1
    monkeypatch.setattr(opening, "find_flavour", lambda name: Flavour(name, version))
    monkeypatch.setattr(opening, "find_gpu", lambda: Gpu("A GPU", "8.6") if gpus else None)

    def complaint(kind: type[GateNormError]) -> str:
        with pytest.raises(kind) as caught:
            find_model(engine)
        return str(caught.value)

    assert "no such engine" in complaint(InputError)
    engine.write_bytes(b"engine")
    assert "has no record model.engine.json beside it" in complaint(InputError)
    record.model_copy(update={"profiles": record.profiles[:1]}).save(tmp_path / "model.engine.json")
    assert "names no profiles prefill and decode" in complaint(InputError)
    record.save(tmp_path / "model.engine.json")
    assert "was built by tensorrt-rtx 1.0, and 2.0 is installed" in complaint(RefusedError)
    version, gpus = "1.0", 0
    assert "needs an NVIDIA GPU, and this machine shows none" in complaint(RefusedError)
    gpus = 1
    assert "holds no tokenizer" in complaint(InputError)
    assert find_model(engine, tokenizer=graphs[()]).max_length == 128
    engine.write_bytes(b"another")
    assert "or is not the engine that model.engine.json describes" in complaint(InputError)
