"""Property tests: the same examples in every run, and no deadline on a shared machine."""

from hypothesis import settings

settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate")
