"""Which failures are the reader's to fix, and with what exit code they end a command."""


class UserError(Exception):
    """A wrong input or setting: one line that says what is wrong and what to do about it.

    The command line prints it to stderr without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class MeasurementError(UserError):
    """The input was fine, but the measurement itself failed or may not be trusted."""

    exit_code = 1
