"""Doors beside OpenAI's chat and completions: each is a translation of a request into a chat's, and of pieces into its
own answer; all between is the chat's way."""
