"""How long, and how often: `3ep`, `500ba`, `2000000tok`, `30min`. Parsed here, once."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from finetune_api.fields import Format


class Unit(StrEnum):
    """What is counted."""

    EPOCHS = "ep"
    BATCHES = "ba"
    TOKENS = "tok"
    MINUTES = "min"


@dataclass(frozen=True)
class Duration:
    """A whole number of `unit`. A batch is one optimizer step."""

    count: int
    unit: Unit

    @classmethod
    def parse(cls, value: str) -> Self:
        """Read `3ep`. Raises ValueError for anything else."""
        found = re.fullmatch(r"([1-9][0-9]{0,11})(ep|ba|tok|min)", value)
        if found is None:
            raise ValueError(f"{value!r} is not a whole number followed by ep, ba, tok or min")
        return cls(int(found[1]), Unit(found[2]))

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


TrainingLength = Annotated[
    str,
    Field(max_length=64),
    Format(
        r"^[1-9][0-9]{0,11}(ep|ba|tok)$",
        "must be a whole number followed by ep (epochs), ba (batches) or tok (tokens), e.g. 3ep",
    ),
]
SaveInterval = Annotated[
    str,
    Field(max_length=64),
    Format(
        r"^[1-9][0-9]{0,11}(ep|ba|min)$",
        "must be a whole number followed by ep (epochs), ba (batches) or min (minutes), e.g. 500ba",
    ),
]
EvaluationInterval = Annotated[
    str,
    Field(max_length=64),
    Format(r"^[1-9][0-9]{0,11}(ep|ba)$", "must be a whole number followed by ep (epochs) or ba (batches), e.g. 1ep"),
]
