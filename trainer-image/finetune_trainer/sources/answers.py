"""What a hub's refusals mean for a user: gated, private, not there, no such revision. Trouble on the way may pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_api.trainer_config import TOKEN_VARIABLE
from finetune_api.uris import Uri
from finetune_trainer.errors import NoPermission, NotFound, SourceUnreachable

_KEYS = {"model": "a token", "dataset": f"an {TOKEN_VARIABLE}"}
"""What the Secret of `model.credentials` and that of `dataset.credentials` hold for a hub."""

_OTHERWISE = {
    "model": "put the model on a volume and name it as model.uri pvc://CLAIM/FOLDER",
    "dataset": "put the data on a volume and name it as pvc://CLAIM/FILE",
}
"""Where to have it from instead."""


@contextmanager
def understood(what: str, uri: str) -> Iterator[None]:
    """For calls of the hub's library about a model or a dataset. Raises NotFound, NoPermission or SourceUnreachable."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # it is in its __all__, built at run time

    try:
        yield
    except errors.GatedRepoError as error:
        raise NoPermission(
            f"{what} {uri} is gated: accept its terms on the hub with the account of the token that"
            f" {what}.credentials names ({_status(error)})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{what} {uri}: the repository has no revision {Uri.parse(uri).revision!r}") from error
    except (httpx.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _meaning(what, uri, error) from error


def _meaning(what: str, uri: str, error: Exception) -> Exception:
    from huggingface_hub import constants

    status = _status(error)
    if constants.is_offline_mode():
        return NotFound(
            f"{what} {uri} is not in the hub's cache here, and HF_HUB_OFFLINE forbids a download; mount it from a claim"
        )
    if status == 404:
        return NotFound(f"{what} {uri} is not on the hub, or is private and {TOKEN_VARIABLE} may not see it")
    if status in (401, 403):
        return NoPermission(
            f"the hub refuses {what} {uri} ({status}): it doesn't exist, or is private or gated; set"
            f" {what}.credentials to a Secret with {_KEYS[what]} that may read it"
        )
    if status is None or status == 429 or status >= 500:
        why = f"it answers {status}" if status else _in_a_line(error)
        return SourceUnreachable(
            f"{what} {uri} can't be had: the hub {constants.ENDPOINT} can't be reached ({why}). Another attempt tries"
            f" again; where pods may not reach it, {_OTHERWISE[what]}"
        )
    return error


def _in_a_line(error: BaseException) -> str:
    """What the network said, without what the library advises."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _status(error: BaseException) -> int | None:
    """The hub's answer; the library wraps some answers in an error of its own."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None)
