"""The errors that sdd_ray raises for its users: one class per kind of failure.

Commands print the message of an `SddError` without a traceback and exit with its status. Functions
in `sdd_ray.core` raise `ValueError` for a caller's mistake and know nothing of these classes.
"""


class SddError(Exception):
    """Base of every error with a message meant for the user."""

    exit_status = 1


class ConfigError(SddError):
    """The configuration is wrong; the message lists every wrong key."""

    exit_status = 2


class InputError(SddError):
    """Something that was to be read is missing, damaged, or not what it should be."""


class StoreError(SddError):
    """A store does not answer, after all attempts: no fault of any one file, so the run ends."""


class OutputError(SddError):
    """The output cannot be written, or holds something that must not be overwritten."""


class TooManyRejectsError(SddError):
    """More records were set aside than the configuration allows."""


class WeightsError(SddError):
    """A weight file is damaged, unsafe, or does not fit the architecture."""


class ResourceError(SddError):
    """The cluster does not have what the configuration asks for."""
