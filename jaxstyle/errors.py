"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """What a user gave cannot be used.

    Its text is one line that names the flag or file, says what is wrong and what would be right. The
    commands print it on standard error and exit with status 2; a library caller may catch it.
    """
