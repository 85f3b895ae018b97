"""A line's life: how each engine is started and ended, and the client side of the line protocol."""
