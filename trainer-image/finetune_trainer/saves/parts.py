"""One checkpoint written by several processes: the first makes the folder, all write their parts, the first publishes.

Each step is agreed on: what fails for one has failed for all, and nothing of it stays. One process agrees with itself.
"""

from types import TracebackType
from typing import Self

from finetune_api.snapshot import SavedCheckpoint
from finetune_trainer.ranks import Ranks


class Parts:
    """The steps of one save, in the same order on each process. An OSError in its block is told to the others."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks.for_saves()
        self._agreed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and self._agreed:
            self._ranks.any(True)

    def done(self) -> None:
        """This process is done with its step. Raises OSError if another one can't do it."""
        if self._ranks.any(False):
            self._agreed = False
            raise OSError("another process of this training could not write its part; its log says why")

    def tell(self, saved: SavedCheckpoint) -> SavedCheckpoint:
        """From the first process: what there is now."""
        self._ranks.from_first(lambda: saved.model_dump(mode="json", by_alias=True))
        return saved

    def hear(self) -> SavedCheckpoint:
        """What the first process tells."""
        return SavedCheckpoint.model_validate(self._ranks.from_first(dict))
