"""The exceptions of our own: what the user can mend, and what can be continued."""

from __future__ import annotations


class InputError(ValueError):
    """The input, an argument or a file is unsuitable, and the user can mend it.

    The message is one or two lines: what is wrong, where, and what to do about it. The command
    line prints it without a traceback and ends with exit code 2.

    Example:
        >>> raise InputError("counts.h5ad: there is no such file; check the path")
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: counts.h5ad: there is no such file; check the path
    """


class Interrupted(RuntimeError):
    """Work was stopped from outside, and the same call continues it.

    The command line prints it without a traceback and ends with exit code 130.
    """
