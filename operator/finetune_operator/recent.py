"""What was asked of the API server a moment ago, so as not to ask it again."""

from datetime import datetime, timedelta
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Recent(Generic[Answer]):
    """The last answer about each thing, forgotten once it is older than `keep`."""

    def __init__(self, *, keep: timedelta) -> None:
        self._keep = keep
        self._answers: dict[str, tuple[datetime, Answer]] = {}

    def get(self, about: str, *, now: datetime, younger_than: timedelta | None = None) -> Answer | None:
        """The answer, unless there is none that is young enough."""
        known = self._answers.get(about)
        if known is None or now - known[0] >= (younger_than or self._keep):
            return None
        return known[1]

    def put(self, about: str, answer: Answer, *, now: datetime) -> Answer:
        """Remember an answer, and forget the old ones."""
        self._answers = {key: entry for key, entry in self._answers.items() if now - entry[0] < self._keep}
        self._answers[about] = (now, answer)
        return answer
