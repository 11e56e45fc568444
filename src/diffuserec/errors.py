"""What goes wrong through the caller's hand: one clear line each, raised where the mistake enters.

The command line prints that line and exits with status 2; everything else is a defect and shows
its traceback.
"""


class DataError(ValueError):
    """The data is not what was expected: says what came, where (file, line, column), what to do."""


class ConfigError(ValueError):
    """A setting, name or option is not valid: says which, what is allowed, what to do."""
