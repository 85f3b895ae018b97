"""Engines that die under load: `python -m benchmarks.kill`."""
