"""What processes of a pool do in tests: they import it by its name."""

import os
import time


def square(number: int) -> tuple[int, int]:
    """A result, and who made it."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number, os.getpid()


def nap(number: int) -> int:
    """Work that takes a moment."""
    time.sleep(0.2)
    return number
