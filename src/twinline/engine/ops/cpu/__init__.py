"""Our own C++ kernels for CPUs (csrc/cpu/): every op of a step, so that a step of decodes can be recorded and replayed.

They are built with the package where a C++ compiler is found; where they are not, `refuse` says so and the next
provider serves.
"""

from twinline.engine.ops.cpu import attention, experts, latent, linear, route, small  # noqa: F401  each registers its ops
