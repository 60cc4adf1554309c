"""Coded errors: one root for every floor of planish.

Every error that reaches a user has a stable code (``PL601``), says where, what and why, and what to try.
The first digit after ``PL`` belongs to the class; a class refuses a code of another family, so that a code
always tells which exit status the command line gives. This module knows nothing but the standard library.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

__all__ = [
    "ArtifactError",
    "BackendError",
    "BudgetError",
    "CaptureError",
    "GuardError",
    "InternalError",
    "PlanishError",
    "ShapeError",
    "UnsupportedOpError",
    "UsageError",
]

_CODE = re.compile(r"PL[1-9][0-9]{2}")


class PlanishError(Exception):
    """The root of all errors raised on purpose.

    ``code`` is stable and documented, ``message`` says what is wrong and why, ``where`` names the place
    (a file and line, a member of an artifact, an input), ``hint`` says what to try. ``exit_code`` is the
    status with which the command line ends.
    """

    family: ClassVar[str] = "PL"
    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        if not _CODE.fullmatch(code) or not code.startswith(self.family):
            raise ValueError(f"{type(self).__name__}: {code!r} is not a code of the family {self.family}")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        head = f"{self.code}: {self.where}: " if self.where else f"{self.code}: "
        if not self.hint:
            return head + self.message
        return head + self.message + ("\n" if "\n" in self.message else "; ") + self.hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.code, self.message, self.hint, self.where))


def _rebuild(
    kind: type[PlanishError], code: str, message: str, hint: str | None, where: str | None
) -> PlanishError:
    """Make the error again in another process, whatever the constructor of its class takes."""
    error = kind.__new__(kind)
    PlanishError.__init__(error, code, message, hint=hint, where=where)
    return error


class CaptureError(PlanishError):
    """A model cannot be turned into a program (PL1xx)."""

    family: ClassVar[str] = "PL1"
    exit_code: ClassVar[int] = 3


class UnsupportedOpError(PlanishError):
    """Operators that have no entry and no decomposition; lists all of them at once (PL2xx)."""

    family: ClassVar[str] = "PL2"
    exit_code: ClassVar[int] = 3


class ShapeError(PlanishError):
    """Types or shapes that do not fit, in a program or in the arrays given to it (PL3xx)."""

    family: ClassVar[str] = "PL3"
    exit_code: ClassVar[int] = 1


class BudgetError(PlanishError):
    """No plan fits the budget; the message names the smallest that does (PL4xx)."""

    family: ClassVar[str] = "PL4"
    exit_code: ClassVar[int] = 4


class GuardError(PlanishError):
    """A result differs from its reference by more than is allowed (PL5xx)."""

    family: ClassVar[str] = "PL5"
    exit_code: ClassVar[int] = 1


class ArtifactError(PlanishError):
    """A file is invalid, damaged, unsafe or not trusted (PL6xx)."""

    family: ClassVar[str] = "PL6"
    exit_code: ClassVar[int] = 5


class BackendError(PlanishError):
    """A backend or toolchain is missing or refuses what it is given (PL7xx)."""

    family: ClassVar[str] = "PL7"
    exit_code: ClassVar[int] = 6


class UsageError(PlanishError):
    """Bad arguments: an unknown target or pass, a rule that matches nothing (PL8xx)."""

    family: ClassVar[str] = "PL8"
    exit_code: ClassVar[int] = 2


class InternalError(PlanishError):
    """A fault of planish itself; a reproducer directory goes with it (PL9xx)."""

    family: ClassVar[str] = "PL9"
    exit_code: ClassVar[int] = 70
