"""``gatenorm score`` as it is called: cuts, towers, names given by the user, every kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_zoo import row
from range_server import serving
from safetensors.numpy import load_file, save_file

from benchmarks.matrix.models import family
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode


def score(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:
    code = main(["score", *(str(argument) for argument in arguments), "--json", "--quiet"])
    captured = capfd.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def values(scores: dict) -> list[float]:
    return [entry["score"] for entry in scores["layers"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return row("llama-gqa").save(tmp_path_factory.mktemp("llama"))


def unknown(checkpoint: Path, folder: Path) -> Path:
    """The same weights under names that no family has."""
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MarvelForCausalLM"]}))
    tensors = load_file(checkpoint / "model.safetensors")
    renamed = {
        name.replace("model.layers", "net.stage").replace("self_attn", "mixer").replace("_proj", "w"): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")
    return folder


def test_several_cuts_are_certain_and_marked(checkpoint: Path, capfd) -> None:
    code, scores, _ = score(capfd, checkpoint, "--drop", "1,3")
    assert code == 0
    assert [(cut["n"], cut["certain"]) for cut in scores["cuts"]] == [(1, True), (3, True)]
    assert main(["score", str(checkpoint), "--drop", "3,1", "--quiet"]) == 0
    shown = capfd.readouterr().out
    order = np.argsort(values(scores))
    marks = {int(line.split("│")[1]): line for line in shown.splitlines() if line.startswith("│")}
    assert "drop 1" in marks[order[0]]
    assert all("drop 3" in marks[layer] for layer in order[1:3])
    assert "drop" not in marks[order[3]]
    assert "The 3 lowest scores are certain." in shown


def test_a_cut_is_certain_among_what_is_not_protected(checkpoint: Path, capfd) -> None:
    _, scores, _ = score(capfd, checkpoint)
    first, second = np.argsort(values(scores))[:2]
    code, scores, _ = score(capfd, checkpoint, "--drop", "1", "--protect", first, "--fold-norms")
    assert code == 0
    [cut] = scores["cuts"]
    assert (cut["certain"], cut["protect"]) == (True, [first])
    assert cut["sentence"] == "The 1 lowest scores that are not protected are certain."
    assert scores["folded"]["shifts"][0]["plain"] == [second]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--drop", "two"], ExitCode.USAGE, "--drop two: give a number, or several such as 8,16"),
        (["--drop", "5"], ExitCode.REFUSED, "cannot drop 5 attention sublayers: there are 4"),
        (["--ratio", "1.5"], ExitCode.USAGE, "a ratio of 1.5 is no share"),
        (["--protect", "1"], ExitCode.USAGE, "give --drop or --ratio with it"),
        (["--tower", "vision"], ExitCode.REFUSED, "--tower vision: there is no such tower; it has one"),
        (["--q-pattern", "a.{layer}.q"], ExitCode.USAGE, "--q-pattern and --k-pattern belong together"),
        (["--device", "abacus"], ExitCode.USAGE, "--device abacus: there is no such device"),
    ],
)
def test_what_cannot_be_scored_so_is_one_line(checkpoint: Path, capfd, arguments, code, complaint) -> None:
    found, _, error = score(capfd, checkpoint, *arguments)
    assert found == code
    assert complaint in error
    assert error.count("\n") == 1


def test_an_unknown_family_is_guessed_aloud_or_named_by_the_user(checkpoint: Path, tmp_path: Path, capfd) -> None:
    _, known, _ = score(capfd, checkpoint)
    folder = unknown(checkpoint, tmp_path / "marvel")
    names = ("--q-pattern", "net.stage.{layer}.mixer.qw.weight", "--k-pattern", "net.stage.{layer}.mixer.kw.weight")
    code, named, _ = score(capfd, folder, *names)
    assert code == 0
    assert values(named) == values(known)
    code, guessed, error = score(capfd, folder)
    assert code in {ExitCode.OK, ExitCode.REFUSED}
    if code == ExitCode.OK:
        assert values(guessed) == values(known)
        assert guessed["convention"]["guessed"]
    else:
        assert "mixer.kw.weight" in error
    code, _, error = score(capfd, folder, "--q-pattern", "nothing.{layer}.q", "--k-pattern", "nothing.{layer}.k")
    assert code != 0
    assert "nothing" in error


def test_an_unknown_family_with_usual_names_says_that_it_is_guessed(checkpoint: Path, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "marvel"
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MarvelForCausalLM"]}))
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    assert main(["score", str(folder), "--quiet"]) == 0
    assert "MarvelForCausalLM" in capfd.readouterr().out.replace("\n", "")
    _, guessed, _ = score(capfd, folder)
    _, known, _ = score(capfd, checkpoint)
    assert values(guessed) == values(known)
    assert known["convention"]["guessed"] is None


def test_a_damaged_layer_leaves_no_file(checkpoint: Path, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.3.self_attn.q_proj.weight"][0, 0] = np.inf
    save_file(tensors, folder / "model.safetensors")
    code, _, error = score(capfd, folder, "-o", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "model.safetensors: tensor model.layers.3.self_attn.q_proj.weight holds NaN or infinity" in error
    assert not (tmp_path / "out").exists()


def test_every_source_gives_the_same_scores_and_a_graph_can_be_planned_for_alone(
    exported, tmp_path: Path, capfd
) -> None:
    spec, graph, _ = exported("llama-gqa")
    _, expected, _ = score(capfd, spec.path)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(spec.path).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    for source in (tmp_path / "pickled", tmp_path / "pickled" / "pytorch_model.bin", graph):
        code, scores, error = score(capfd, source)
        assert code == 0, error
        assert values(scores) == pytest.approx(values(expected), rel=1e-5)
    assert main(["score", str(graph), "-o", str(tmp_path / "scores"), "--quiet"]) == 0
    plan = tmp_path / "plan.json"
    assert main(["plan", str(tmp_path / "scores" / "scores.json"), "--drop", "2", "-o", str(plan), "--quiet"]) == 0
    assert main(["prune", str(graph), "--plan", str(plan), "-o", str(tmp_path / "pruned"), "--quiet"]) == 0
    capfd.readouterr()
    _, other, _ = exported("llama-mha")
    assert main(["prune", str(other), "--plan", str(plan), "-o", str(tmp_path / "no"), "--quiet"]) == ExitCode.REFUSED
    assert "is not the graph that the plan was made from" in capfd.readouterr().err


def test_towers_are_scored_side_by_side_and_planned_one_by_one(tmp_path: Path, capfd) -> None:
    family("whisper").make().save_pretrained(tmp_path / "whisper")
    code, scores, _ = score(capfd, tmp_path / "whisper", "--drop", 1, "-o", tmp_path / "out")
    assert code == 0
    assert [cut["tower"] for cut in scores["cuts"]] == ["encoder", "decoder", "cross"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scores.json",
        *(f"scores-{tower}.svg" for tower in ("encoder", "decoder", "cross")),
    }
    file = str(tmp_path / "out" / "scores.json")
    assert main(["plan", file, "--drop", "1", "--quiet"]) == ExitCode.REFUSED
    assert "name one with --tower; it has encoder, decoder, cross" in capfd.readouterr().err
    assert main(["plan", file, "--drop", "1", "--tower", "cross", "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["tower"] == "cross"


def test_nothing_that_is_written_or_printed_holds_the_secrets_of_a_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "cache"))
    row("llama-gqa").save(tmp_path / "www" / "model")
    with serving(tmp_path / "www") as server:
        url = server.url.replace("//", "//me:hush@") + "/model?token=hush"
        assert main(["score", url, "--drop", "1", "-o", str(tmp_path / "scores"), "--json"]) == 0
        printed = capsys.readouterr()
        written = [path.read_text() for path in (tmp_path / "scores").iterdir()]
        assert main(["run", url, "--drop", "1", "--out", str(tmp_path / "out")]) == ExitCode.REFUSED
    refused = capsys.readouterr().err
    assert "download it first" in refused
    assert "/model" in printed.out
    assert len(written) == 2
    for text in (printed.out, printed.err, refused, *written):
        assert "hush" not in text


def test_a_decoder_that_the_framework_table_lacks_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = row("llama-gqa").save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysForCausalLM"]}))
    for command in (["run", "--drop", "1", "--out"], ["export", "-o"]):
        assert main([command[0], str(folder), *command[1:], str(tmp_path / "out")]) == ExitCode.REFUSED
        assert "NobodysForCausalLM: not an architecture whose framework model" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
