"""The ladder that a chip climbs before it serves: checks in levels, each with a rule, a verdict and a way to repeat it.

`levels.py` lists the levels. The level files are the only ones beside engine/ and train/ that import torch.
"""
