"""Work that many machines can do: tasks in this process or on a Ray cluster, with equal results and errors."""

from gatenorm_export.executing.batch import Batch, run_batch
from gatenorm_export.executing.choosing import check_executor, open_executor, parse_resources
from gatenorm_export.executing.jobs import bench_task, build_task, place_engine
from gatenorm_export.executing.local import LocalExecutor
from gatenorm_export.executing.remembering import Remembering
from gatenorm_export.executing.store import place_artifact
from gatenorm_export.executing.tasks import Call, Executor, InputFile, Outcome, Resources, Task, input_file

__all__ = [
    "Batch",
    "Call",
    "Executor",
    "InputFile",
    "LocalExecutor",
    "Outcome",
    "Remembering",
    "Resources",
    "Task",
    "bench_task",
    "build_task",
    "check_executor",
    "input_file",
    "open_executor",
    "parse_resources",
    "place_artifact",
    "place_engine",
    "run_batch",
]
