"""Whether a test fails when a trap is sprung: the mistakes of the reference list made in the product, one at a time."""
