"""Twinline: one endpoint, one name per model, over many unlike lines of accelerators."""

__version__ = "0.1.0"
