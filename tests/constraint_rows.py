"""What the constraint tests know of each field: a valid value, and for formats and rules what they take and what not.

Written by hand, so that no regular expression is tested against itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests import builders

Object = dict[str, Any]

# One value for every field, so that each constraint has a place in it. What can't be together is in CONTEXTS.
SPEC: Object = {
    "model": {"uri": "hf://org/name@main", "credentials": {"secretName": "hf-token"}, "trustRemoteCode": False},
    "task": "InstructionFineTune",
    "dataset": {
        "train": {"uri": "pvc://datasets/support/train.jsonl"},
        "eval": {"uri": "pvc://datasets/support/eval.jsonl", "maxSamples": 500},
        "credentials": {"secretName": "data-keys"},
        "format": "Auto",
        "columns": {name: name for name in ("prompt", "response", "history", "messages", "text", "chosen", "rejected")},
        "template": {"prefix": "", "instruction": "", "response": ""},
        "streaming": False,
    },
    "method": {
        "type": "QLoRA",
        "lora": {
            "rank": 16,
            "alpha": 32,
            "dropout": 0.05,
            "targetModules": ["all-linear"],
            "rsLora": False,
            "dora": False,
            "bias": "None",
        },
        "quantization": {"bits": 4},
    },
    "training": {
        "maxDuration": "3ep",
        "learningRate": 0.0002,
        "scheduler": "Cosine",
        "warmupRatio": 0.03,
        "weightDecay": 0.0,
        "maxGradNorm": 1.0,
        "batchSize": {"perDevice": "Auto", "gradientAccumulationSteps": 1},
        "scaleLearningRateWithBatch": "None",
        "maxSequenceLength": 2048,
        "packing": True,
        "precision": "Auto",
        "gradientCheckpointing": "Auto",
        "compile": "Auto",
        "seed": 17,
        "deterministic": False,
        "evaluationInterval": "1ep",
        "earlyStopping": {"metric": "eval_loss", "patience": 3, "minDelta": 0.0},
        "preference": {"beta": 0.1},
    },
    "checkpoint": {"interval": "500ba", "keep": 3, "resume": "Auto"},
    "storage": {
        "claimTemplate": {"storageClassName": "fast", "size": "100Gi", "accessMode": "ReadWriteOnce"},
        "subPath": "runs/support-bot",
        "retain": "Retain",
        "mergeAdapter": False,
        "uploadUri": "s3://models/support-bot",
        "credentials": {"secretName": "model-store-keys"},
    },
    "resources": {
        "nodes": 1,
        "devicesPerNode": 1,
        "deviceResource": "nvidia.com/gpu",
        "cpu": "8",
        "memory": "64Gi",
        "sharedMemory": "16Gi",
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [
            {
                "key": "nvidia.com/gpu",
                "operator": "Equal",
                "value": "present",
                "effect": "NoExecute",
                "tolerationSeconds": 60,
            }
        ],
        "priorityClassName": "batch",
    },
    "profile": "a100-small",
    "queue": {"name": "team-a", "priority": 0, "priorityClass": "low", "retryPriorityClass": "high"},
    "recovery": {"maxRestartsWithoutProgress": 3, "hangTimeoutSeconds": 1800, "onHang": "Notify"},
    "activeDeadlineSeconds": 86400,
    "tracking": {
        "mlflow": {
            "trackingUri": "http://mlflow.mlflow.svc:5000/",
            "experiment": "support-bot",
            "registerAs": "support-bot",
            "alias": "candidate",
            "credentials": {"secretName": "mlflow-login"},
            "tags": {"team": "support"},
        },
        "tensorBoard": True,
    },
    "trainer": {
        "image": "registry.example.com/trainer:1.2",
        "imagePullSecrets": [{"name": "registry"}],
        "command": [],
        "args": [],
        "env": {},
    },
    "suspend": False,
    "cancel": False,
    "ttlSecondsAfterFinished": 3600,
    "managedBy": "finetune.dev/operator",
}

TIME = builders.CREATED
STATUS: Object = {
    "observedGeneration": 1,
    "phase": "Running",
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "SpecAccepted",
            "message": "",
            "lastTransitionTime": TIME,
            "observedGeneration": 1,
        }
    ],
    "attempt": 2,
    "jobAttempt": 1,
    "jobStartTime": TIME,
    "restartsWithoutProgress": 0,
    "startTime": TIME,
    "completionTime": TIME,
    "activeSeconds": 5210,
    "earlierActiveSeconds": 3600,
    "hangRestarts": 0,
    "earlierStep": 40,
    "model": {"uri": "hf://org/name@main", "adapterUri": "pvc://other/output"},
    "profile": {"name": "a100", "generation": 3, "given": '{"resources":{"memory":"64Gi"}}'},
    "events": [{"sequence": 1, "type": "CREATED", "time": TIME, "message": "Run created.", "attempt": 1}],
    "progress": {
        "epoch": 1,
        "totalEpochs": 1,
        "batch": 50,
        "totalBatches": 56,
        "tokens": 812331,
        "totalTokens": 900000,
        "percent": 89,
        "done": "89%",
        "etaSeconds": 300,
        "eta": "5min",
        "loss": "1.71",
        "evalLoss": "1.8",
        "learningRate": "0.0002",
        "tokensPerSecondPerDevice": "4100",
        "deviceUtilization": "0.97",
        "deviceMemoryBytes": 1 << 34,
        "dataWaitRatio": "0.0123",
        "mfuRatio": "0.457",
        "lastStepTime": TIME,
        "stepSeconds": 41,
        "reportedTime": TIME,
        "attempt": 2,
        "stale": False,
    },
    "checkpoints": [
        {
            "name": "ep1-ba50",
            "step": 50,
            "time": TIME,
            "sizeBytes": 1000,
            "path": "checkpoints/ep1-ba50",
            "sha256": "0" * 64,
            "complete": True,
        }
    ],
    "output": {
        "uri": "pvc://support-bot/output",
        "checkpoint": "ep1-ba56",
        "uploadUri": "s3://models/support-bot",
        "mlflowRunId": "1a2b",
        "registeredModel": "support-bot/3",
    },
    "failure": {
        "reason": "DataInvalid",
        "message": "train.jsonl line 17: unknown key",
        "exitCode": 65,
        "pod": "support-bot-1-x",
        "attempt": 1,
    },
    "queue": {"position": 3, "message": "2 runs are ahead."},
    "tracking": {"mlflowRunId": "1a2b", "url": "http://mlflow:5000/#/experiments/1/runs/1a2b", "problem": ""},
}

CUSTOM: Object = {
    "task": "Custom",
    "storage": {"uploadUri": None, "credentials": None},
    "tracking": {"mlflow": None, "tensorBoard": False},
}
CONTEXTS: Mapping[str, Object] = {
    "spec.trainer.command": CUSTOM | {"trainer": {"command": ["train"]}},
    "spec.trainer.args": CUSTOM | {"trainer": {"command": ["train"], "args": ["--fast"]}},
    "spec.trainer.env": CUSTOM | {"trainer": {"command": ["train"], "env": {"HF_HOME": "/tmp"}}},
    "spec.storage.claimName": {"storage": {"claimTemplate": None, "claimName": "existing"}},
    "spec.training.batchSize.global": {"training": {"batchSize": {"gradientAccumulationSteps": None, "global": 64}}},
}
"""What a field needs around it, where that is not in SPEC."""

NAMES = (
    ["a", "my-claim", "a.b-c.d", "0"],
    ["", "My-Claim", "-a", "a-", "a..b", "a_b", "a/b", "../a", "a ", "a\n", "ä"],
)
DATA = (
    [
        "pvc://datasets/train.jsonl",
        "pvc://datasets/a/b c/train.jsonl",
        "configmap://my-data/train.jsonl",
        "hf://squad",
        "hf://org/name:train",
        "hf://org/name@v1.2:train",
        "s3://bucket/key",
        "gs://bucket/a/b/",
        "https://host.example:8443/a/b?x=1",
    ],
    [
        "",
        "train.jsonl",
        "/data/train.jsonl",
        "file:///etc/passwd",
        "pvc://datasets",
        "pvc://datasets/",
        "pvc://datasets//train.jsonl",
        "pvc://datasets/../other/train.jsonl",
        "pvc://datasets/a/../../b",
        "pvc://datasets/.hidden",
        "pvc://other-namespace.datasets:x/y",
        "pvc://datasets/a%2e%2e/b",
        "pvc://datasets/a\\b",
        "pvc://datasets/a\nb",
        "pvc://a..b/c",
        "configmap://my-data",
        "configmap://my-data/..data",
        "configmap://my-data/a/b",
        "hf://../name",
        "hf://org/na..me",
        "hf://org/näme",
        "hf://a/b/c",
        "http://host/a",
        "https://user:password@host/a",
        "run://other/ep1-ba5",
    ],
)
BYTES = (
    ["1", "64Gi", "0.5Gi", "500M", "1500k", "007Ti"],
    ["", "0", "0Gi", "0.0", "-1", "64 Gi", "64GB", "500m", "1e9", ".5Gi", "1.Gi", "٣Gi"],
)
LENGTHS = ["", "3", "3 epochs", "0ep", "-1ep", "1.5ep", "ep", "3EP", "3ep ", "3ep\n", "٣ep", "1234567890123ep"]

FORMATS: Mapping[str, tuple[list[Any], list[Any]]] = {
    "spec.model.uri": (
        [
            "hf://gpt2",
            "hf://org/name",
            "hf://org/na.me_1@refs/pr/1",
            "pvc://models",
            "pvc://models/a/b",
            "s3://bucket",
            "gs://bucket/a",
            "run://other",
            "run://other/ep1-ba500",
        ],
        [
            "",
            "org/name",
            "hf://",
            "hf://org/name:train",
            "hf://org/name@../x",
            "hf://.org/name",
            "https://host/model",
            "configmap://a/b",
            "pvc://models/../x",
            "pvc:///x",
            "run://other/../x",
            "run://namespace/other/x",
            "hf://org/name\n",
        ],
    ),
    "spec.model.credentials.secretName": NAMES,
    "spec.dataset.credentials.secretName": NAMES,
    "spec.storage.credentials.secretName": NAMES,
    "spec.dataset.train.uri": DATA,
    "spec.dataset.eval.uri": DATA,
    "spec.method.lora.targetModules[]": (["all-linear", "q_proj", "layers.0.fc"], ["", "q proj", "a/b", "q*", "ä"]),
    "spec.training.maxDuration": (["1ep", "500ba", "2000000tok", "999999999999ba"], [*LENGTHS, "30min"]),
    "spec.training.evaluationInterval": (["1ep", "500ba"], [*LENGTHS, "30min", "5tok"]),
    "spec.training.batchSize.perDevice": (["Auto", 1, 8, 4096], ["auto", "8", "", 0, -1, 4097]),
    "spec.checkpoint.interval": (["1ep", "500ba", "30min"], [*LENGTHS, "5tok"]),
    "spec.storage.claimTemplate.storageClassName": NAMES,
    "spec.storage.claimTemplate.size": BYTES,
    "spec.storage.claimName": NAMES,
    "spec.storage.subPath": (
        ["", "a", "a/b.c/d_e"],
        ["/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a b", "a\\b", "a\n"],
    ),
    "spec.storage.uploadUri": (
        ["s3://bucket", "gs://bucket/a/b"],
        ["", "bucket/a", "https://host/a", "pvc://claim/a", "s3://", "s3://bucket/../a"],
    ),
    "spec.resources.deviceResource": (
        ["", "nvidia.com/gpu", "nvidia.com/mig-3g.20gb", "huawei.com/Ascend910"],
        ["gpu", "nvidia.com/", "/gpu", "nvidia.com/gpu/x", "nvidia.com/g pu", "cpu"],
    ),
    "spec.resources.cpu": (["8", "0.5", "500m"], ["", "0", "0m", "8 cores", "8Gi", "-1", "1.", "٣"]),
    "spec.resources.memory": BYTES,
    "spec.resources.sharedMemory": BYTES,
    "spec.resources.nodeSelector": (
        [{}, {"a": "b"}, {"example.com/a.b_c": ""}],
        [{"": "a"}, {"a b": "c"}, {"A.com/b": "c"}, {"a/b/c": "d"}, {"-a": "b"}, {"a\n": "b"}],
    ),
    "spec.resources.nodeSelector{}": (["", "amd64", "A_b.c-d"], ["a b", "-a", "a-", "ä", "a/b", "a\n"]),
    "spec.resources.tolerations[].key": (["a", "nvidia.com/gpu"], ["", "a b", "a/b/c", "-a"]),
    "spec.resources.tolerations[].value": (["", "present"], ["a b", "-a", "ä"]),
    "spec.resources.priorityClassName": (["", *NAMES[0]], NAMES[1][1:]),
    "spec.profile": NAMES,
    "spec.queue.name": NAMES,
    "spec.queue.priorityClass": NAMES,
    "spec.queue.retryPriorityClass": NAMES,
    "spec.tracking.mlflow.trackingUri": (
        ["http://mlflow:5000", "https://mlflow.example.com/a/b"],
        [
            "",
            "mlflow:5000",
            "ftp://mlflow",
            "http://",
            "http://user:password@mlflow",
            "http://mlflow/?x=1",
            "file:///x",
        ],
    ),
    "spec.tracking.mlflow.credentials.secretName": NAMES,
    "spec.tracking.mlflow.registerAs": (
        ["support-bot", "Support bot 1.2_a"],
        ["", "a/b", "a:b", "-a", " a", "a@b", "ä", "a\n"],
    ),
    "spec.tracking.mlflow.alias": (
        ["candidate", "v1-tested", "A_b"],
        ["", "a b", "-a", "1a", "a/b", "a@b", "ä", "a\n"],
    ),
    "spec.trainer.image": (
        ["", "trainer", "registry.example.com:5000/a/trainer@sha256:0a1b"],
        [" trainer", "trainer image", "-x", "a$b", "a\n"],
    ),
    "spec.trainer.imagePullSecrets[].name": NAMES,
    "spec.trainer.env": ([{}, {"HF_HOME": "/tmp"}, {"_a1": ""}], [{"": "a"}, {"1A": "b"}, {"A-B": "c"}, {"A=B": "c"}]),
}
"""Field: values that its format takes, and values that it doesn't."""

RULES: Mapping[tuple[str, str], tuple[Object, Object]] = {
    ("spec", ".training.earlyStopping"): ({}, {"dataset": {"eval": None}}),
    ("spec", ".trainer"): (
        CUSTOM | {"trainer": {"command": ["a"], "args": ["b"], "env": {"C": "d"}}},
        {"trainer": {"args": ["b"]}},
    ),
    ("spec", ".model"): (CUSTOM | {"model": None, "trainer": {"command": ["a"]}}, {"model": None}),
    ("spec", ".dataset"): (
        CUSTOM | {"dataset": None, "training": {"earlyStopping": None}, "trainer": {"command": ["a"]}},
        {"dataset": None, "training": {"earlyStopping": None}},
    ),
    ("spec", ".trainer.image"): (
        CUSTOM | {"trainer": {"command": ["a"]}},
        CUSTOM | {"trainer": {"command": ["a"], "image": ""}},
    ),
    ("spec", ".trainer.command"): (CUSTOM | {"trainer": {"command": ["a"]}}, CUSTOM),
    ("spec", ".storage"): (
        {},
        CUSTOM | {"storage": {}, "trainer": {"command": ["a"]}},
    ),
    ("spec", ".tracking.mlflow"): (
        {},
        CUSTOM | {"tracking": {"tensorBoard": False}, "trainer": {"command": ["a"]}},
    ),
    ("spec", ".tracking.tensorBoard"): (
        {"tracking": {"tensorBoard": True}},
        CUSTOM | {"tracking": {"mlflow": None, "tensorBoard": True}, "trainer": {"command": ["a"]}},
    ),
    ("spec.tracking.mlflow", ".alias"): (
        {"tracking": {"mlflow": {"alias": "v1-tested"}}},
        {"tracking": {"mlflow": {"alias": "Latest"}}},
    ),
    ("spec", ".storage.mergeAdapter"): (
        {"storage": {"mergeAdapter": True}},
        {"storage": {"mergeAdapter": True}, "method": {"type": "Full", "lora": None, "quantization": None}},
    ),
    ("spec.storage", ".credentials"): ({}, {"storage": {"uploadUri": None}}),
    ("spec.method", ".lora"): (
        {"method": {"type": "Full", "lora": None, "quantization": None}},
        {"method": {"type": "Full", "quantization": None}},
    ),
    ("spec.method", ".quantization"): (
        {"method": {"type": "LoRA", "quantization": None}},
        {"method": {"type": "LoRA"}},
    ),
    ("spec.method", ".lora.bias"): (
        {"method": {"type": "LoRA", "quantization": None, "lora": {"bias": "All"}}},
        {"method": {"lora": {"bias": "All"}}},
    ),
    ("spec.training.batchSize", ".global"): (
        {"training": {"batchSize": {"gradientAccumulationSteps": None, "global": 64}}},
        {"training": {"batchSize": {"global": 64}}},
    ),
    ("spec.storage", ".claimName"): (
        {"storage": {"claimTemplate": None, "claimName": "existing"}},
        {"storage": {"claimName": "existing"}},
    ),
    ("spec.storage", ".retain"): (
        {"storage": {"retain": "Delete"}},
        {"storage": {"retain": "Delete", "claimTemplate": None, "claimName": "existing"}},
    ),
    ("spec.resources.tolerations[]", ".operator"): (
        {"resources": {"tolerations": [{"operator": "Exists"}]}},
        {"resources": {"tolerations": [{"operator": "Equal"}]}},
    ),
    ("spec.resources.tolerations[]", ".value"): (
        {"resources": {"tolerations": [{"key": "a", "operator": "Exists"}]}},
        {"resources": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
    ),
    ("spec.resources.tolerations[]", ".tolerationSeconds"): (
        {"resources": {"tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}},
        {"resources": {"tolerations": [{"operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}]}},
    ),
}
"""Object and the field that the rule is about: what obeys it and what doesn't, merged into SPEC."""

# Strings whose format doesn't end in anything that may be repeated: how to make them as long as is wanted.
LONGER: Mapping[str, Callable[[str, int], str]] = {
    "spec.resources.nodeSelector": lambda _, length: f"{'b' * 63:/>64}".rjust(length, "a"),
    "spec.resources.tolerations[].key": lambda _, length: f"{'b' * 63:/>64}".rjust(length, "a"),
    "spec.storage.claimTemplate.size": str.zfill,
    "spec.resources.cpu": str.zfill,
    "spec.resources.memory": str.zfill,
    "spec.resources.sharedMemory": str.zfill,
}
SHORT_FORMATS = frozenset({"spec.training.maxDuration", "spec.training.evaluationInterval", "spec.checkpoint.interval"})
"""Formats that end before the limit does: the limit is there for the API server's cost estimate alone."""
