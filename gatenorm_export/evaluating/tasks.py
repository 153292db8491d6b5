"""lm-eval's tasks by name, its own and local ones, with what goes wrong said in one line."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gatenorm_export.errors import GateNormError, InputError, RefusedError
from gatenorm_export.evaluating.lm import check_greedy

_SUGGESTIONS = 5


def load_tasks(names: Sequence[str], *, include: Path | None, num_fewshot: int | None) -> dict[str, Any]:
    """Tasks, groups and tags by their names, with their data sets, as lm-eval's ``TaskManager.load`` returns them.

    Tasks of the folder ``include`` are found first. lm-eval's own 14,000 are read only where a name is not among them:
    that takes ten seconds. ``num_fewshot`` None leaves each task at what it defines, or at 0.

    Raises:
        InputError: an unknown name, a damaged task, or a data set that cannot be fetched.
        RefusedError: a task needs more than greedy decoding, images, or to run what a model writes; or ``num_fewshot``
            is given for a task that is defined without examples.
    """
    if include is not None and not include.is_dir():
        raise InputError(f"{include}: no such folder; --include-path names a folder of lm-eval's task files (.yaml)")
    manager = task_manager(include, built_in=False) if include is not None else None
    if manager is None or not _all_found(manager, names):
        manager = task_manager(include, built_in=True)
    for name in names:
        if name not in manager.all_tasks:
            raise _unknown(name, manager.all_tasks, include)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys(names):
        with blamed_on_the_task(name):
            loaded = manager.load([name])
        for part, content in found.items():
            content.update(loaded.get(part) or {})
    for name, task in found["tasks"].items():
        _check(name, task)
        _set_fewshot(name, task, num_fewshot)
    return found


def task_manager(include: Path | None, *, built_in: bool) -> Any:
    """lm-eval's index of tasks; later folders win, so local tasks hide built-in ones of the same name."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include) if include is not None else None, include_defaults=built_in)


def _all_found(manager: Any, names: Sequence[str]) -> bool:
    """Whether an index holds all of ``names``, and the members of those that are groups."""
    for name in names:
        entry = manager.task_index.get(name)
        if entry is None:
            return False
        if name in manager.all_groups:
            # Members are names, or tables whose "task" or "group" is one; a table may also define its task there.
            members = [member for member in (entry.cfg or {}).get("task", ()) if isinstance(member, str)]
            if len(members) < len((entry.cfg or {}).get("task", ())) or not _all_found(manager, members):
                return False
    return True


def _unknown(name: str, known: Sequence[str], include: Path | None) -> InputError:
    damaged = _first_damaged(include) if include is not None else None
    if damaged is not None:
        return InputError(f"no task is called {name}, and {damaged}")
    near = difflib.get_close_matches(name, known, n=_SUGGESTIONS)
    advice = f"near it are {', '.join(near)}" if near else "lm-eval ls tasks lists all"
    return InputError(f"no task is called {name}; {advice}; --include-path adds a folder of local ones")


def _first_damaged(include: Path) -> str | None:
    """lm-eval passes over task files that are no YAML; whoever wrote one wants to know."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Takes lm-eval's own tags, such as !function, for nothing."""

    Loader.add_multi_constructor("!", lambda *_: None)
    for path in sorted(include.rglob("*.yaml")):
        try:
            yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            return f"{path} is not a readable task file ({' '.join(str(error).split())}); correct it"
    return None


def _check(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise RefusedError(f"task {name}: runs code that the model writes; leave it out, or run it in lm-eval itself")
    if getattr(task, "MULTIMODAL", False):
        raise RefusedError(f"task {name}: shows pictures or sounds to the model; only text is evaluated here")
    if task.OUTPUT_TYPE == "generate_until":
        check_greedy(task.get_config("generation_kwargs") or {}, name)


def _set_fewshot(name: str, task: Any, asked: int | None) -> None:
    """As lm-eval does, but a number that it would ignore is refused."""
    defined = task.get_config("num_fewshot")
    if asked is None:
        if defined is None:
            task.set_config(key="num_fewshot", value=0)
    elif defined == 0 and asked != 0:
        raise RefusedError(f"task {name}: is defined with 0 examples, which lm-eval keeps; leave --num-fewshot out")
    else:
        task.set_config(key="num_fewshot", value=asked)


@contextlib.contextmanager
def blamed_on_the_task(name: str | None = None) -> Iterator[None]:
    """Turn what a task raises, from its data set to its templates, into one line; anything else passes.

    lm-eval runs whole groups at once, so the task that failed is read off the traceback. ``name`` stands for it where
    it failed before it existed; without a name such an exception is not the task's.

    Raises:
        InputError: a data set cannot be fetched, or a task is not well defined.
    """
    try:
        yield
    except GateNormError:
        raise
    except Exception as error:
        task, fetching = _culprit(error.__traceback__)
        shown = task.config.task if task is not None else name
        if shown is None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if fetching and task is not None:
            what = " ".join(part for part in (task.DATASET_PATH, task.DATASET_NAME) if part)
            raise InputError(
                f"task {shown}: its data set {what} cannot be fetched ({reason}); go online, or fetch it elsewhere "
                "and copy the Hugging Face cache (HF_HOME) here, or name a local copy in a task of your own "
                "(--include-path)"
            ) from error
        raise InputError(f"task {shown}: lm-eval cannot use it ({reason}); correct its definition") from error


def _culprit(traceback: TracebackType | None) -> tuple[Any | None, bool]:
    """The innermost task that a traceback passes through, and whether it was fetching its data set."""
    from lm_eval.api.task import Task

    task, fetching = None, False
    while traceback is not None:
        holder = traceback.tb_frame.f_locals.get("self")
        if isinstance(holder, Task):
            task, fetching = holder, fetching or traceback.tb_frame.f_code.co_name == "download"
        traceback = traceback.tb_next
    return task, fetching
