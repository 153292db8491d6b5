"""What an earlier call of a sweep left in its folder, where that still holds."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.errors import GateNormError, InputError
from gatenorm_export.progress import Progress
from gatenorm_export.records import SweepIdentity, SweepReport

_CHANGED = {
    "graph": "the graph",
    "text": "the text that quality is judged on",
    "calibration": "the calibration text",
    "tools": "the versions of the tools",
    "machine": "the machine",
}


def earlier_report(path: Path, identity: SweepIdentity, progress: Progress) -> SweepReport | None:
    """The report at ``path`` if its figures rest on the same as those that are to come, and a word on it.

    Raises:
        InputError: what lies there is not the record of a sweep.
    """
    if not path.exists():
        return None
    try:
        report = SweepReport.load(path)
    except GateNormError as error:
        # Overwriting somebody else's file would lose it; ours from another version only costs a rerun.
        if not path.is_file() or '"kind": "sweep"' not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{path}: not the record of a sweep; choose another output folder") from error
        progress.say(f"{path}: of another version of gatenorm; starting anew")
        return None
    old, new = report.identity.model_dump(), identity.model_dump()
    changed = [words for name, words in _CHANGED.items() if old[name] != new[name]]
    if changed:
        progress.say(f"{path}: changed since: {', '.join(changed)}; starting anew")
        return None
    n_measured = sum(cell.figures is not None for cell in (*report.cells, *report.earlier))
    progress.say(f"{path}: unchanged graph and texts, {n_measured} measured cells can be reused")
    return report
