"""Whether a run builds engines, and with which flavour: asked for by name it must, "auto" builds what can be built."""

from __future__ import annotations

import dataclasses

from gatenorm_export.building.flavours import Flavour, find_flavour
from gatenorm_export.errors import MissingPartError, NoEngineError, RefusedError
from gatenorm_export.kinds import ModelKind, no_engine_of


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """``flavour`` None builds none, and ``reason`` says why; ``asked`` is a flavour, "auto" or "none"."""

    asked: str
    flavour: Flavour | None
    reason: str = ""

    @classmethod
    def of(cls, asked: str) -> EngineChoice:
        """What is installed of what is asked for.

        Raises:
            MissingPartError: a flavour that is asked for by name is not installed.
        """
        if asked == "none":
            return cls(asked, None, "left out on request (--flavour none)")
        try:
            return cls(asked, find_flavour(None if asked == "auto" else asked))
        except MissingPartError as error:
            if asked != "auto":
                raise
            return cls(asked, None, str(error))

    def for_kind(self, kind: ModelKind) -> EngineChoice:
        """The same for a kind of model, of which there may be no engines.

        Raises:
            RefusedError: there are none, and a flavour was asked for by name.
        """
        reason = no_engine_of(kind)
        if not reason or self.asked == "none":
            return self
        if self.asked != "auto":
            raise RefusedError(f"--flavour {self.asked}: {reason}; leave it out")
        return dataclasses.replace(self, flavour=None, reason=reason)

    def without(self, error: NoEngineError) -> EngineChoice:
        """None, since the graphs have an operator that the installed flavour does not take.

        Raises:
            NoEngineError: a flavour was asked for by name.
        """
        if self.asked != "auto":
            raise NoEngineError(f"{error}; --flavour none leaves engines out of the run") from error
        return dataclasses.replace(self, flavour=None, reason=str(error))
