"""The `simulated` engine: a process that plays a chip, with the native engine's own scheduler and no model behind it.

Its text is recited, never computed, and is marked as such wherever it can be seen.
"""
