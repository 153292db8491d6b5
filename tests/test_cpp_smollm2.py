"""The C++ decoder on the real thing: pruned SmolLM2 on OpenVINO, by the commands of the page, against Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cpp_programs
import pytest
from cpp_programs import Program, greedy
from documented import DOCS, ROOT, fences

from gatenorm_export.bundling import Bundle, open_bundle

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(cpp_programs.missing()), reason=cpp_programs.missing()),
]

PAGE = DOCS / "cpp.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(cpp_programs.build_programs(tmp_path_factory) / "gatenorm-decode-openvino")


@pytest.fixture(scope="module")
def folder(documented_folder: Path) -> Path:
    """A folder with ``bundle/``: SmolLM2 without the attention of its four layers with the lowest scores."""
    return documented_folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder / "bundle")


@pytest.mark.parametrize("prompt", [(504, 10205, 2799), tuple(range(1000, 1300))], ids=len)
def test_tokens_are_those_of_python(program: Program, bundle: Bundle, prompt: tuple[int, ...]) -> None:
    ids = ",".join(map(str, prompt))
    done = program(bundle.folder, "--prompt-ids", ids, "--max-tokens", 24, "--no-digests")
    assert done.tokens == greedy(bundle, prompt, 24)


def test_the_page_configures_and_decodes_text(program: Program, folder: Path, bundle: Bundle) -> None:
    from tokenizers import Tokenizer

    build, decode, _, text = fences(PAGE, "bash")
    (folder / "examples").symlink_to(ROOT / "examples")
    _shell("\n".join(line for line in build.splitlines() if not line.startswith(("pip ", "cmake --build "))), folder)
    (folder / "build" / "cpp" / program.path.name).symlink_to(program.path)
    assert len(_shell(decode, folder).split(",")) <= 16
    tokenizer = Tokenizer.from_file(str(folder / "bundle" / "tokenizer.json"))
    ids = tokenizer.encode("The harbour master kept two clocks").ids
    assert _shell(text, folder).strip() == tokenizer.decode(greedy(bundle, ids, 32)).strip()


def test_what_the_page_names_exists() -> None:
    text = PAGE.read_text()
    settings = (ROOT / "examples" / "cpp" / "cmake" / "find_runtimes.cmake").read_text()
    named = {word.split("=")[0] for word in text.split("-D")[1:]} - {"CMAKE_PREFIX_PATH"}
    named |= {word for word in text.split("`") if word.isupper() and word.count("_") > 1}
    assert len(named) > 8
    assert all(name in settings for name in named), named


def _shell(commands: str, folder: Path) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
