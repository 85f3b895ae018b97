"""The gateway's speed benchmark in parts; `benchmarks/gateway.py` is the command."""
