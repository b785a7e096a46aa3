"""The one exception that users are meant to read."""


class UserError(Exception):
    """A problem the user can fix, in one line: what is wrong, where, what to do. Shown without a traceback."""
