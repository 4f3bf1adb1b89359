"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave (a file, a config value, a folder).

    Its message is one line that names the field, the value and the remedy. The command line prints
    it without a traceback and exits with status 2.
    """
