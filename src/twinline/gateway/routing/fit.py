"""A straight line learnt from noisy observations as they come: seconds = fixed + slope * load.

Owns the estimate. Must not know what it is an estimate of.
"""

from __future__ import annotations

MEMORY = 0.99  # weight left to an observation by the next one: the last hundred count
RECENT = 0.92  # the same for the scale: the last twelve
PRIOR = 0.05  # observations' worth of the assumed shape
OUTLIER = 6.0  # times what is expected


class Fit:
    """Exponentially weighted least squares, in units of what is expected, times a scale that follows sudden change.

    The shape needs a long memory and many loads; the scale does not. So the last hundred observations give fixed part
    and slope, and the last dozen, by their sum against the fit's, tell how the line does now. Both are means, so an
    observation may be zero: a line that answers two prompts in one step shows the second as free.
    Where all loads seen are alike the split is not known; then the fixed part is that of `knee` units of load.
    """

    __slots__ = (
        "_expected", "_fixed", "_observed", "_s0", "_slope", "_sx", "_sxx", "_sxy", "_sy", "fixed", "knee", "scale",
        "seen", "slope",
    )  # fmt: skip

    def __init__(self, fixed: float, slope: float, knee: float) -> None:
        self.fixed = self._fixed = fixed  # seconds, with the scale in it
        self.slope = self._slope = slope  # seconds per unit of load, with the scale in it
        self.knee = knee
        self.seen = 0
        self.scale = 1.0
        self._observed = self._expected = 0.0
        self._s0 = self._sx = self._sxx = self._sy = self._sxy = 0.0

    def at(self, load: float) -> float:
        return self.fixed + self.slope * load

    def learn(self, load: float, seconds: float) -> None:
        """One observation; load above 0, seconds not below."""
        self.seen += 1
        expected = self._fixed + self._slope * load
        if self.seen > 5:  # what is far out is a lost cache or a paused process, and says little of the line
            limit = OUTLIER * self.scale * expected
            if seconds > limit:
                seconds = limit
        elif self.seen == 1 and seconds > 0.0:
            expected = seconds
        w = 1.0 / (expected * expected)
        wx = w * load
        s0 = self._s0 = self._s0 * MEMORY + w
        sx = self._sx = self._sx * MEMORY + wx
        sxx = self._sxx = self._sxx * MEMORY + wx * load
        sy = self._sy = self._sy * MEMORY + w * seconds
        sxy = self._sxy = self._sxy * MEMORY + wx * seconds
        prior = PRIOR * w
        knee = self.knee
        a11 = s0 + prior
        a12 = sx - prior * knee
        a22 = sxx + prior * knee * knee
        determinant = a11 * a22 - a12 * a12
        if sy > 0.0 and determinant > 1e-12 * a11 * a22:
            fixed = (sy * a22 - sxy * a12) / determinant
            slope = (sxy * a11 - sy * a12) / determinant
            if slope <= 0.0:
                fixed = sy / s0
                slope = 1e-3 * fixed / knee
            elif fixed <= 0.0:
                slope = sxy / sxx
                fixed = 1e-3 * slope * knee
            self._fixed, self._slope = fixed, slope
        observed = self._observed = self._observed * RECENT + seconds
        expects = self._expected = self._expected * RECENT + self._fixed + self._slope * load
        scale = observed / expects
        scale = self.scale = 0.01 if scale < 0.01 else scale
        self.fixed = scale * self._fixed
        self.slope = scale * self._slope
