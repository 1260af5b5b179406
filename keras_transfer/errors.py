"""The one exception for mistakes a user can make and mend."""


class UserError(ValueError):
    """Something the user can put right.

    The message is one plain sentence or two: what was wrong, what was received
    and what to do. Commands under `bin/` print it without a traceback and exit
    with status 1; as a `ValueError` it reads naturally in library use too.
    """
