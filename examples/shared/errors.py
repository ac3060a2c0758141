"""The error for input that cannot be used. This module imports nothing, because experiments/harness must start fast."""


class InputError(ValueError):
    """An input that cannot be used. The text is one line, names the input and says what is allowed."""


def one_line(text: object) -> str:
    """Return `text` without line breaks and repeated spaces."""
    return " ".join(str(text).split())
