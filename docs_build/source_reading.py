"""Two extensions of griffe, which reads the source for mkdocstrings: roles in docstrings, fields of records."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

# :func:`~package.name` is shown as `name`, as Sphinx does.
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|obj):`(~?)([^`]+)`")
_RECORDS = "gatenorm_export.records."


class DocstringRoles(griffe.Extension):
    """Makes code of Markdown from roles of reStructuredText, which the docstrings use."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_as_code, obj.docstring.value)


class RecordFields(griffe.Extension):
    """Gives the records, which are pydantic models, a signature with their fields, as dataclasses have one."""

    def on_class_members(self, *, node: ast.AST | griffe.ObjectNode, cls: griffe.Class, **kwargs: Any) -> None:
        """Called for each class, once its own members are known."""
        if not cls.path.startswith(_RECORDS) or not cls.bases or "__init__" in cls.members:
            return
        fields = [
            griffe.Parameter(
                member.name, annotation=member.annotation, default=member.value, kind=griffe.ParameterKind.keyword_only
            )
            for member in cls.members.values()
            if isinstance(member, griffe.Attribute) and member.annotation is not None and not _is_constant(member)
        ]
        if fields:
            this = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
            cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(this, *fields)))


def _is_constant(member: griffe.Attribute) -> bool:
    return "property" in member.labels or "ClassVar" in str(member.annotation) or member.name.startswith("_")


def _as_code(match: re.Match[str]) -> str:
    name = match[2].rpartition(".")[2] if match[1] else match[2]
    return f"`{name}`"
