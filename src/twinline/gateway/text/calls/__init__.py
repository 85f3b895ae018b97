"""Tool calls: read from a model's text, and written back into its prompt.

Owns the formats of the families served here. Must not know tokens, lines or HTTP.
"""
