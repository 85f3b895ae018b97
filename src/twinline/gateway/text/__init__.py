"""The gateway's text layer: text to token ids and back, and what the text means."""
