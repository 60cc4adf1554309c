"""Coded errors: families, exit codes, text, and the way through a process pool."""

from __future__ import annotations

import pickle

import pytest

from planish import errors


def test_every_class_has_its_family_and_exit_code() -> None:
    exits = {"1": 3, "2": 3, "3": 1, "4": 4, "5": 1, "6": 5, "7": 6, "8": 2, "9": 70}
    classes = [getattr(errors, name) for name in errors.__all__ if name != "PlanishError"]
    assert sorted(c.family for c in classes) == [f"PL{n}" for n in exits]
    for kind in classes:
        assert kind.exit_code == exits[kind.family[2]]
        made = kind(kind.family + "01", "what", hint="do this", where="here")
        assert str(made) == f"{kind.family}01: here: what; do this"
        again = pickle.loads(pickle.dumps(made))
        assert (type(again), str(again), again.hint) == (kind, str(made), "do this")
        with pytest.raises(ValueError, match="family"):
            kind("PL000", "what")


def test_text_of_several_lines() -> None:
    error = errors.ShapeError("PL301", "wrong\n    y = x\n        ^", hint="do this")
    assert str(error) == "PL301: wrong\n    y = x\n        ^\ndo this"
