"""What all tests share."""

from hypothesis import settings

settings.register_profile("atmc", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("atmc")
