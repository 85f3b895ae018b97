"""A fleet: the file that describes it, and the control side that makes the machine be like it."""
