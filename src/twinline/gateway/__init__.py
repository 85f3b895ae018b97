"""The OpenAI door: text in, text out, over lines that know token ids only."""
