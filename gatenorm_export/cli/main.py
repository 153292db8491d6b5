"""``gatenorm``: parse the command line, run one verb, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from rich_argparse import RawDescriptionRichHelpFormatter

from gatenorm_export.errors import ExitCode, GateNormError

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
}
"""Every verb, in the order of the pipeline after ``run``; each lives in the module of its name beside this file."""

_EXIT_CODES = """\
exit codes:
  0   done
  1   a defect in gatenorm (please report the traceback)
  2   wrong usage of the command line
  3   an input is missing, damaged, or not what the verb works on
  4   a package that this stage needs is not installed
  5   refused: what was asked cannot be done as asked
  6   the output cannot be written
  10  the pruned graph does not compute what it should (faithfulness failed)
  11  a threshold was missed (--max-ppl-ratio, --max-kl, --min-speedup)
  12  a row is slower than the baseline allows (bench --max-regression)
  130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see ``gatenorm --help``)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    args.command = " ".join(["gatenorm", *argv])
    try:
        return int(args.run(args))
    except GateNormError as error:
        _complain(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; finished stages are kept, nothing half-written is")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout went away (as `head` does); what is left to print has no taker.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)


def _complain(text: str) -> None:
    sys.stderr.write(f"gatenorm: {' '.join(text.split())}\n")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatenorm",
        description="Prune attention sublayers from transformers by their weights alone, and prove cost and gain.",
        epilog=_EXIT_CODES,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    # Only the verb that is asked for is imported: help and score must not wait for torch or pay for its import.
    asked = next((word for word in argv if not word.startswith("-")), None)
    for verb, summary in VERBS.items():
        subparser = verbs.add_parser(verb, help=summary, formatter_class=RawDescriptionRichHelpFormatter)
        if verb == asked:
            importlib.import_module(f"gatenorm_export.cli.{verb}").configure(subparser)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gatenorm_export import __version__

        sys.stdout.write(f"gatenorm {__version__}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
