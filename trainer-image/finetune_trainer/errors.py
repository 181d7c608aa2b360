"""How a training can end before its time: each exception knows its exit code. `__main__` alone turns them into an exit.

The message is for the user: what is wrong, where, and what to do about it.
"""

from typing import ClassVar

from finetune_api.snapshot import PEER_LOST, REASONS, ExitCode


class TrainerError(Exception):
    """Base of all ends that are understood."""

    exit_code: ClassVar[int]

    @property
    def reason(self) -> str:
        """One word for programs."""
        return REASONS[self.exit_code]


class ConfigInvalid(TrainerError):
    """The configuration can't be followed."""

    exit_code = ExitCode.BAD_CONFIG


class DataInvalid(TrainerError):
    """The data can't be learned from."""

    exit_code = ExitCode.BAD_DATA


class NotFound(TrainerError):
    """Model or data isn't there, or isn't one."""

    exit_code = ExitCode.NOT_FOUND


class SourceUnreachable(TrainerError):
    """Hub, store or server doesn't answer, or has trouble of its own: it may pass."""

    exit_code = ExitCode.UNREACHABLE


class StorageFailed(TrainerError):
    """The run's volume is full, read-only or broken."""

    exit_code = ExitCode.STORAGE


class Stopped(TrainerError):
    """Asked to stop; what there was to save is saved."""

    exit_code = ExitCode.STOPPED


class NoPermission(TrainerError):
    """The hub refuses: a gated model, or a bad token."""

    exit_code = ExitCode.NO_PERMISSION


class Diverged(TrainerError):
    """Loss or gradient is no longer a number."""

    exit_code = ExitCode.DIVERGED


class OutOfMemory(TrainerError):
    """The device's memory is too small for the settings."""

    exit_code = ExitCode.KILLED

    @property
    def reason(self) -> str:
        return "OutOfMemory"


class PeerLost(TrainerError):
    """Another process of this training has ended: why, it has said itself."""

    exit_code = 1

    @property
    def reason(self) -> str:
        return PEER_LOST
