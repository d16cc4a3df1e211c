"""What can go wrong on the user's side, in one line each.

Every message says what was given, where, and what would work, so that a command line can print it
without a traceback. Mistakes of our own are asserts.
"""


class AttribError(ValueError):
    """A user's mistake: the message says what, where, and what would work."""


class SetupError(AttribError):
    """The model or the data cannot be used at all; nothing was computed."""


class RowError(AttribError):
    """One row of a dataset cannot be used; the others can.

    Attributes:
        file: The dataset file the row stands in; "" where only the sample is known.
        row: The row's index or id in that file.
        field: The field that is wrong.
        reason: What is wrong with it.
    """

    def __init__(self, message: str, *, file: str = "", row: int | str | None = None, field: str):
        place = f"{file}: row {row}: " if file else ""
        super().__init__(f"{place}{field}: {message}")
        self.file, self.row, self.field, self.reason = file, row, field, message


def describe(error: BaseException) -> str:
    """Class and message of an error in one line, which is never empty."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
