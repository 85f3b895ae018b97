"""A fit for machines: the same facts as in text, each with its origin.

Owns the shape of that JSON. Must not know how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.cli.fit_table import Row
from twinline.cli.fit_text import Question
from twinline.facts.fit import Fit
from twinline.facts.fit_changes import Change
from twinline.facts.weights import checkpoint_bytes


def _model(question: Question) -> dict[str, Any]:
    anatomy, want = question.anatomy, question.want
    return {
        "name": question.file.name,
        "source": question.file.source,
        "architecture": anatomy.architecture,
        "parameters": anatomy.parameters,
        "active_parameters": anatomy.active_parameters,
        "context": anatomy.context,
        "precision": want.form.name,
        "precision_says": want.form.says,
        "weight_bytes": checkpoint_bytes(anatomy, want.form),
        "folder_bytes": question.file.stored_bytes,
    }


def _fit(one: Fit) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(one)
    found["layout_says"] = str(one.layout) if one.layout else None
    return found


def answer_for_machines(question: Question, found: Fit, better: Sequence[Change]) -> dict[str, Any]:
    changes = [{"what": c.what, "options": c.options, "fit": _fit(c.fit)} for c in better]
    return {"answer": found.answer, "model": _model(question), "fit": _fit(found), "changes": changes}


def table_for_machines(question: Question, rows: Sequence[Row]) -> dict[str, Any]:
    chips = [{"chip": row.chip.id, "fit": _fit(row.fit) if row.fit else None, "why": row.why} for row in rows]
    return {"model": _model(question), "chips": chips}
