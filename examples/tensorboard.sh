#!/bin/sh
# Opens a run's TensorBoard on this machine until Ctrl-C, then removes its pod:
#   examples/tensorboard.sh RUN [kubectl's options, e.g. -n ml]
# It finds the run's volume and the trainer's image; CLAIM and IMAGE in the environment take precedence.
set -eu
run=${1:?"the name of a run"}
shift
kubectl() { command "${KUBECTL:-kubectl}" "$@"; }
claim=${CLAIM:-$(kubectl get ftr "$run" "$@" -o 'jsonpath={.spec.storage.claimName}')}
of_run="finetune.dev/run=$run"
claim=${claim:-$(kubectl get pvc -l "$of_run" "$@" --sort-by=.metadata.creationTimestamp -o name | tail -n 1 | cut -d/ -f2)}
image=${IMAGE:-$(kubectl get jobs -l "$of_run" "$@" \
  -o 'jsonpath={.items[-1:].spec.template.spec.containers[0].image}')}
: "${claim:?"run $run has no volume yet"}" "${image:?"run $run has no Job any more: name the image of the trainer in IMAGE"}"
trap 'kubectl delete pod "tensorboard-$run" "$@" --ignore-not-found --wait=false' EXIT
trap 'exit 130' INT TERM
sed "s|RUN|$run|; s|CLAIM|$claim|; s|IMAGE|$image|; /^#/d" "$(dirname "$0")/tensorboard.yaml" | kubectl apply "$@" -f -
kubectl wait --for=condition=Ready "pod/tensorboard-$run" "$@" --timeout=180s
echo "TensorBoard: http://localhost:${PORT:-6006}"
kubectl port-forward "pod/tensorboard-$run" "$@" "${PORT:-6006}:6006"
