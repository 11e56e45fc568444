"""Errors caused by the caller's input: each message says what was expected, what came, what to do.

The command line prints the message and exits with status 2; any other exception is a defect and
shows its traceback.
"""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """The data is not what was expected: says what came, where (file, line, column), what to do."""


class ConfigError(ValueError):
    """A setting, name or option is not valid: says which, what is allowed, what to do."""


class LostProcess(RuntimeError):
    """One of several processes that train together is gone: the others cannot go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)", or an empty string if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
