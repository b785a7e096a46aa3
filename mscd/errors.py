"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend, said in one line: what is wrong, where, what to do. Shown without a traceback."""
