"""``gatenorm``: parse the command line, run one verb, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from gatenorm_export.cli.bus_errors import bus_errors_told
from gatenorm_export.cli.console import complain
from gatenorm_export.cli.manual import exit_codes
from gatenorm_export.cli.outputs import outputs_held
from gatenorm_export.errors import ExitCode, GateNormError, MissingPartError, UsageError, pip_install
from gatenorm_export.urls import shown

VERBS = {
    "run": "the whole job: score, plan, export, prune, build, compare, report",
    "score": "score every attention sublayer of a checkpoint, from weights alone",
    "plan": "choose the sublayers to remove from scores",
    "export": "export a checkpoint to ONNX with KV cache",
    "inspect": "show every attention sublayer of an ONNX graph",
    "prune": "remove attention sublayers from an ONNX graph",
    "build": "build a TensorRT engine from an ONNX graph",
    "compare": "prove a pruning: faithfulness, quality, latency, sizes",
    "bench": "time a pruned model and its base in turns; roofline, control, regression gate",
    "correlate": "does Gate-Norm see what attention does? forward passes on a text beside the scores",
    "sweep": "quality, speed and cache over rankings, repairs and numbers of layers; one table, one plot",
    "eval": "score models on zero-shot tasks of lm-eval, side by side",
    "recover": "fine-tune the pruned model with LoRA, and export and prune it again",
    "report": "write the report of a run folder again",
    "bundle": "put everything that a server needs into one folder",
    "verify": "check that a bundle is whole, untouched, loads, and computes what it did",
    "triton": "write a model repository for Triton Inference Server from a bundle",
    "doctor": "say which stages this machine can run, and what the others need",
    "completion": "print the script that completes verbs and options in a shell",
}
"""Every verb, in the order of the pipeline after ``run``; each lives in the module of its name beside this file."""

_EPILOG = f"""\
{exit_codes()}

environment:
  GATENORM_CACHE      where demo models, byte ranges of remote checkpoints and built engines are kept
                      (default: the user's cache folder); it may be deleted at any time
  RAY_ADDRESS         the cluster that --executor ray uses (default: this machine)

`gatenorm VERB --help` has the options of a verb, with examples. Results go to stdout, everything else to stderr; every
verb has --json and --quiet, and none ever asks anything.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see ``gatenorm --help``)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Only the verb that is asked for is imported: help and score must not wait for torch or pay for its import.
    asked = next((word for word in argv if not word.startswith("-")), None)
    args = argparse.Namespace(verb=asked)
    try:
        args = make_parser([asked] if asked is not None else []).parse_args(argv)
        args.command = " ".join(["gatenorm", *map(shown, argv)])
        with sigterm_interrupts(), bus_errors_told(), outputs_held(args):
            return int(args.run(args))
    except MissingPartError as error:
        return _lacks_part(args, error)
    except GateNormError as error:
        complain(str(error))
        return int(error.exit_code)
    except ModuleNotFoundError as error:
        return _lacks_module(args, error)
    except KeyboardInterrupt:
        complain("interrupted; finished stages are kept, nothing half-written is")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout went away (as `head` does); what is left to print has no taker.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)


def _lacks_part(args: argparse.Namespace, error: MissingPartError) -> int:
    """What a stage found missing, with every extra that the command needs in the place of the first one."""
    text = str(error)
    if error.extra is not None:
        from gatenorm_export.doctoring.lacking import extras_lacking

        lacking = extras_lacking(args.verb, vars(args), error.extra)
        text = text.replace(pip_install(error.extra), pip_install(*lacking))
    complain(text)
    return int(error.exit_code)


def _lacks_module(args: argparse.Namespace, error: ModuleNotFoundError) -> int:
    """Name the extra that brings a module which a stage found missing; what no extra brings is a defect."""
    from gatenorm_export.doctoring.requirements import extra_of

    module = (error.name or "").partition(".")[0]
    extra = extra_of(module)
    if extra is None:
        raise error
    needs = f"this needs {module}, which is not installed: {pip_install(extra)}; see gatenorm doctor"
    return _lacks_part(args, MissingPartError(needs, extra))


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, which is how CI systems and containers cancel, cleans up as Ctrl-C does while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_parser(verbs: Iterable[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """The parser of the command line, with the options of ``verbs``; the others are there by name alone."""
    parser = _Parser(
        prog="gatenorm",
        description="Prune attention sublayers from transformers by their weights alone, and prove cost and gain.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    configured = set(verbs)
    for verb, summary in VERBS.items():
        subparser = subparsers.add_parser(verb, help=summary, formatter_class=RawDescriptionRichHelpFormatter)
        if verb in configured:
            importlib.import_module(f"gatenorm_export.cli.{verb}").configure(subparser)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what every other error is said in, instead of in the usage and two lines."""
        raise UsageError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gatenorm_export import __version__

        sys.stdout.write(f"gatenorm {__version__}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
