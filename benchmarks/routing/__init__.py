"""The routing rule on simulated fleets: `python -m benchmarks.routing`."""
