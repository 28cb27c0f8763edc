"""The exception for mistakes of a user."""


class UserError(ValueError):
    """A mistake in a flag, a path, a file or a data set, shown in one line.

    Scripts catch it, print the line on stderr and exit with status 2.
    """
