"""Whether a chip suits a form of weights, as evidence: what the catalog says of the form, else of its arithmetic.

Owns that one question. Must not know what fits.
"""

from __future__ import annotations

import re

from twinline.facts.chips import Chip
from twinline.facts.evidence import NO_EVIDENCE, Answer, Support
from twinline.facts.forms import Form

# form: what the catalog's weight forms that mean it say
SAID = {
    "fp8": r"^FP8\b(?!.*(W8A16|channel))",
    "int8": r"\bINT8\b.*\bW8A8\b|\bW8A8 INT8\b",
    "w4a8": r"\bW4A8\b|\bW4AFP8\b",
    "int4": r"\bAWQ\b|\bW4A16\b",
    "fp4": r"\bNVFP4\b|\bMXFP4\b",
    "bf16": r"^BF16\b",
    "fp16": r"^FP16\b",
}


def suits(chip: Chip, form: Form) -> Support:
    """Yes, no or unknown, with its source. Weights to be converted as they are loaded are a yes, with a note."""
    pattern = SAID.get(form.name)
    said = [w for w in chip.weights if pattern and re.search(pattern, w.form)]
    for weights in sorted(said, key=lambda w: ("use", "avoid", "impossible").index(w.verdict)):
        answer: Answer = "no" if weights.verdict == "impossible" else "yes"
        avoid = "better not: " if weights.verdict == "avoid" else ""
        return Support(answer, weights.evidence, weights.source, f"{weights.form}: {avoid}{weights.why}")
    if form.name in ("int4", "w4a8"):
        # Four bits are a matter of kernels, not of arithmetic: without a word about them nothing is known.
        return NO_EVIDENCE
    arithmetic = chip.precisions[form.computes]
    if arithmetic.answer == "other-encoding":
        return Support("yes", arithmetic.evidence, arithmetic.source, "in another encoding: converted at load")
    return arithmetic
