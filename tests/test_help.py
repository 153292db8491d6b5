"""The help of every verb as a manual page, its exit codes, and completion in shells."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_repository import HEAVY

from gatenorm_export.cli.main import VERBS, main, make_parser
from gatenorm_export.errors import ExitCode, GateNormError, InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return make_parser()


def of_verb(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return subparsers.choices[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_can_be_typed(verb: str, parser: argparse.ArgumentParser) -> None:
    manual = of_verb(parser, verb)
    assert manual.description
    commands = re.findall(r"^    (gatenorm .*)$", manual.epilog or "", re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.partition(" > ")[0])
        assert words[:2] == ["gatenorm", verb]
        assert parser.parse_args(words[1:]).verb == verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_every_verb_speaks_json_and_can_be_quiet(
    verb: str, parser: argparse.ArgumentParser
) -> None:
    manual = of_verb(parser, verb)
    for action in manual._actions:
        assert action.help, action.dest
    options = {option for action in manual._actions for option in action.option_strings}
    assert {"--json", "--quiet", "--help"} <= options
    assert ("--out" in options) == ("--wait" in options), "what is written is locked"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_its_exit_codes(verb: str, parser: argparse.ArgumentParser) -> None:
    told = {int(code) for code in re.findall(r"^  (\d+) ", of_verb(parser, verb).epilog or "", re.MULTILINE)}
    assert {0, 1, 2, 3, 4, 5, 6, 14, 130} <= told <= {int(code) for code in ExitCode}


def test_every_exit_code_is_documented_and_every_error_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "pipelines.md").read_text()
    for code in ExitCode:
        assert f"{int(code)} {code.meaning}" in shown
        assert f"| {int(code)} | {code.meaning} |" in page
    errors = [*GateNormError.__subclasses__(), *InputError.__subclasses__()]
    assert all(error.exit_code in set(ExitCode) - {ExitCode.OK, ExitCode.INTERNAL} for error in errors)


def test_help_needs_nothing_heavy() -> None:
    """Of every verb: completion configures them all."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    code = blocked + "from gatenorm_export.cli.main import main\nsys.exit(main(['completion', 'bash']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"gatenorm \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_names_every_verb_and_is_taken_by_the_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell, "--json"]) == 0
    script = json.loads(capsys.readouterr().out)["script"]
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script
    assert all(verb in script for verb in VERBS)
    program = shutil.which(shell)
    if program is not None:
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gatenorm pru", "prune"),
        ("gatenorm run smollm2 --prec", "--precision"),
        ("gatenorm build --flavour ", "tensorrt tensorrt-rtx"),
        ("gatenorm completion ", "bash zsh tcsh"),
        ("gatenorm prune model.o", "model.onnx"),
    ],
)
def test_bash_completes(typed: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "model.onnx").touch()
    typed_words = typed.split(" ")
    words = " ".join(map(shlex.quote, typed_words))
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({words})\nCOMP_CWORD={len(typed_words) - 1}\n_shtab_gatenorm\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert {*offered.split()} <= {*done.stdout.split()}, done.stderr
