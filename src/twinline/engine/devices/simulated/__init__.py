"""The simulated chip: a device in software that PyTorch takes for an accelerator, and that fails on demand.

It computes on the CPU, so its speed says nothing and its right answers are the CPU's. What it has of its own is what
foreign chips are feared for: a memory limit, missing ops, refused dtypes, slow ops, wrong numbers, hangs and death.
`profiles.py` says which chips' software it can play, `faults.py` what can be planted, `docs/simulated-chip.md` how.
"""
