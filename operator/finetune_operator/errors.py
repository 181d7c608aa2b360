"""What can go wrong, by what must follow from it. The edges translate; inside, nothing is caught and dropped."""


class OperatorError(Exception):
    """Base of the operator's errors."""


class UserError(OperatorError):
    """The manifest asks for something that can't be had. Names the field, the value and the way out; not retried."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class TransientError(OperatorError):
    """Trouble outside (network, API server, throttling): tried again, after `retry_after` seconds if it said so."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConflictError(TransientError):
    """The object has changed since it was read (409): read and decide again."""


class ExistsError(ConflictError):
    """There already is an object of that name (409)."""


class GoneError(TransientError):
    """The object is no longer there (404), or is another of the same name."""


class TakenError(OperatorError):
    """The name of a child is taken by an object that isn't this run's: it is left alone, and the run says so."""


class RefusedError(OperatorError):
    """The API server refuses what the run needs (403, 422), e.g. for want of quota. Tried again, slowly."""
