"""The real Flux and the real Argo CD of the tests, built once from the versions that the go.mod of each folder pins.

`python -m tests.gitops.build` (`make gitops`) builds them into the cache folder; that takes a quarter of an hour once.
Of Flux it is the kustomize-controller and the helm-controller; of Argo CD everything, with the kustomize that it calls
and a Redis in memory.
Standard library alone. It must never write into the checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.gobuild import Build, build_all

HERE = Path(__file__).resolve().parent
KUSTOMIZE_CONTROLLER = "github.com/fluxcd/kustomize-controller"
SOURCE_CONTROLLER = "github.com/fluxcd/source-controller"
HELM_CONTROLLER = "github.com/fluxcd/helm-controller"
ARGO = "github.com/argoproj/argo-cd/v3"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5"

FLUX = Build(
    name="flux",
    pins=HERE / "flux",
    programs={"kustomize-controller": KUSTOMIZE_CONTROLLER},
    files={
        "kustomizations": (KUSTOMIZE_CONTROLLER, "config/crd/bases"),
        "sources": (SOURCE_CONTROLLER, "config/crd/bases"),
    },
)
HELM = Build(
    name="helm-controller",
    pins=HERE / "helm",
    programs={"helm-controller": HELM_CONTROLLER},
    files={"releases": (HELM_CONTROLLER, "config/crd/bases")},
)
# From 3.3 on Argo CD replaces its gitops-engine by a folder that its module doesn't carry, and 3.2.12 doesn't compile.
ARGOCD = Build(
    name="argocd",
    pins=HERE / "argocd",
    programs={"argocd": f"{ARGO}/cmd", "kustomize": KUSTOMIZE, "redis": "./redis"},
    files={"crds": (ARGO, "manifests/crds")},
)


if __name__ == "__main__":
    sys.exit(build_all(FLUX, HELM, ARGOCD))
