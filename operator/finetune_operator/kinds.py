"""The kinds of objects that the operator follows or creates: where the API server keeps them, which of them are the
operator's, and how each is read. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.types import GROUP, KIND, PLURAL, PROFILE_KIND, PROFILE_PLURAL, VERSION
from finetune_operator import names
from finetune_operator.children import Body, Claim, Job, Pod, owner_uid
from finetune_operator.names import Key
from finetune_operator.profiles import Profile
from finetune_operator.run import Run

View = Run | Profile | Job | Pod | Claim | None
"""An object, parsed; None for a kind that is only created."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind. `selector` is the label selector of those that are the operator's."""

    name: str
    group: str
    version: str
    plural: str
    parse: Callable[[Body], View]
    selector: str = names.SELECTOR
    is_namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Of one object, of all in a namespace, or of all in the cluster."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{name}" if name else "")


PROFILE = Kind(
    name=PROFILE_KIND,
    group=GROUP,
    version=VERSION,
    plural=PROFILE_PLURAL,
    parse=Profile.parse,
    selector="",
    is_namespaced=False,
)
RUN = Kind(name=KIND, group=GROUP, version=VERSION, plural=PLURAL, parse=Run.parse, selector="")
JOB = Kind(name="Job", group="batch", version="v1", plural="jobs", parse=Job.parse)
POD = Kind(name="Pod", group="", version="v1", plural="pods", parse=Pod.parse)
CLAIM = Kind(name="PersistentVolumeClaim", group="", version="v1", plural="persistentvolumeclaims", parse=Claim.parse)

SERVICE = Kind(name="Service", group="", version="v1", plural="services", parse=lambda _: None)
"""Created and never looked at again, so nobody follows it."""

KINDS = (PROFILE, RUN, JOB, POD, CLAIM)
"""Children come after what owns them, and runs after the profiles that they name."""


def called(name: str) -> Kind:
    """The kind of a manifest."""
    return next(kind for kind in (*KINDS, SERVICE) if kind.name == name)


def run_key(kind: Kind, body: Body) -> Key | None:
    """Which run an object is, or says it belongs to."""
    if not kind.is_namespaced:
        return None
    metadata = body["metadata"]
    name = metadata["name"] if kind is RUN else (metadata.get("labels") or {}).get(names.RUN_LABEL)
    return Key(metadata["namespace"], name) if name else None


def run_uid(kind: Kind, body: Body) -> str | None:
    """UID of the run that an object is, or was made for."""
    metadata = body["metadata"]
    if kind is RUN:
        return str(metadata["uid"])
    if kind is JOB:
        return owner_uid(body)
    uid: str | None = (metadata.get("annotations") or {}).get(names.RUN_UID_ANNOTATION)
    return uid
