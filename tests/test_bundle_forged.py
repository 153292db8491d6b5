"""A bundle that was forged and sealed anew: its manifest and files are held against the graph and each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_cases import toy_folder
from test_verify import checks_of, reseal

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged")
    make_bundle(BundleRequest(toy_folder(folder), folder / "bundle"))
    return folder / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def decoding(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["decoding"].update(fields)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (decoding(mask_input=None), "input for mask is none, and the graph's is attention_mask"),
        (decoding(mask_input="input_ids"), "input for mask is input_ids, and the graph's is attention_mask"),
        (decoding(position_input="position_ids"), "input for positions is position_ids, and the graph's is none"),
        (decoding(token_input="tokens"), "input for tokens is tokens, and the graph's is input_ids"),
        (decoding(logits_output="scores"), "logits, scores, are no output"),
    ],
)
def test_what_the_graph_is_fed_is_told_for_every_input(
    change: Callable[[dict[str, Any]], None], finding: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reseal(bundle, change)
    passed, found = checks_of(bundle)["signature"]
    assert passed is False
    assert finding in found
    assert main(["verify", str(bundle), "-q"]) == ExitCode.TAMPERED
    capfd.readouterr()
    # Neither does it become a model that answers every request with an error.
    assert main(["triton", str(bundle), "-o", str(bundle.parent / "models"), "-q"]) == ExitCode.TAMPERED
    said = capfd.readouterr().err
    assert finding in said
    assert said.count("\n") == 1
    assert not (bundle.parent / "models").exists()
