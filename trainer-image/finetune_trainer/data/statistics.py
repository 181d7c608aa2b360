"""What is told of the data: how much there is, and what was cut, split or left out. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.encoding import Tally

SHOWN = 5


@dataclass(frozen=True)
class Figures:
    """The numbers."""

    records: int
    tokens: int
    learned: int
    mean: float
    longest: int
    duplicates: int
    cut: int
    split: int
    left_out: int

    def fields(self) -> dict[str, float]:
        """For the log."""
        return {key: round(value, 1) for key, value in asdict(self).items()}


def of(dataset: Dataset, tally: Tally) -> Figures:
    """The numbers of a data set."""
    lengths = np.diff(dataset.ends, prepend=0)
    keys = np.zeros(0) if dataset.keys is None else dataset.keys
    return Figures(
        records=len(dataset.places),
        tokens=len(dataset.tokens),
        learned=int(np.count_nonzero(dataset.learned)),
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        longest=int(lengths.max(initial=0)),
        duplicates=len(keys) - len(np.unique(keys)),
        cut=tally.cut,
        split=tally.split,
        left_out=tally.unlearnable_count,
    )


def told(figures: Figures, tally: Tally, files: Sequence[str], *, longest: int) -> str:
    """The numbers in words."""
    seen = max(tally.records, 1)
    much = f"{figures.tokens:,} tokens ({figures.learned:,} learned)"
    parts = [
        f"{count(figures.records, 'record')}, {much} in {names(files)}.",
        f"Mean length {figures.mean:.1f}, longest {figures.longest:,}.",
    ]
    if figures.split:
        parts.append(f"{count(figures.split, 'text')} of {seen:,} split into windows of {longest:,} tokens.")
    if figures.cut:
        parts.append(f"{figures.cut:,} ({figures.cut / seen:.1%}) cut at {longest:,} tokens.")
    if figures.duplicates:
        parts.append(f"{count(figures.duplicates, 'duplicate')}.")
    if figures.left_out:
        where = [str(place) for place in tally.unlearnable]
        parts.append(
            f"{figures.left_out:,} left out, as nothing to learn is left after the cut:"
            f" {names(where, total=figures.left_out)}."
        )
    if tally.reduced:
        parts.append(f"{tally.reduced:,} learn the last answer only: the chat template rewrites earlier turns.")
    if tally.ignored:
        parts.append(f"Keys not used: {names(sorted(tally.ignored))}.")
    return " ".join(parts)


def nothing_left(tally: Tally, longest: int) -> str:
    """What is wrong when no record can be learned from."""
    return (
        f"none of {tally.records:,} records has anything to learn within the first {longest} tokens: raise"
        " training.maxSequenceLength or shorten the prompts"
    )


def overlap(train: Dataset, evaluation: Dataset) -> str:
    """What to tell of records that are in both."""
    if train.keys is None or evaluation.keys is None:
        return ""
    both = int(np.isin(evaluation.keys, train.keys).sum())
    return f" {count(both, 'evaluation record')} also in the training data." if both else ""


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def names(given: Sequence[str], *, total: int | None = None) -> str:
    """The first of some names."""
    left = (len(given) if total is None else total) - min(len(given), SHOWN)
    more = f" and {left:,} more" if left > 0 else ""
    return ", ".join(name[:80] for name in given[:SHOWN]) + more
