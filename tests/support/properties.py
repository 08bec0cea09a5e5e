"""Settings of the property tests: few examples, and the same ones in every run."""

from hypothesis import settings

BOUNDED = settings(derandomize=True, database=None, deadline=None)
"""`settings(BOUNDED, max_examples=...)`: a slow machine fails no test, and a failure is the same on every machine."""
