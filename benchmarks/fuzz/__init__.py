"""Every parser under a fuzzer that is led by coverage: `python -m benchmarks.fuzz`."""
