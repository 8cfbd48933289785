"""What an explanation is asked that cannot be given."""

from tcar.ground.errors import TcarError


class ExplanationError(TcarError, ValueError):
    """An explanation was asked of a model, a clip or a method that has none; the message says what fits."""
