"""The engine on a CPU beside its peers: see README.md, `python -m benchmarks.cpu --help`."""
