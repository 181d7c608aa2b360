"""Secrets that a run names: always in its own namespace, read by the training pod alone, never by the operator."""

from finetune_api.fields import ApiModel, Name

STORE_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "GOOGLE_SERVICE_ACCOUNT_JSON",
    "HF_TOKEN",
)
"""Keys of the Secret for data and uploads: those that are there become environment variables of the same names."""

MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Keys of the Secret for MLflow, likewise."""


class Credentials(ApiModel):
    """A Secret that only the training pod reads."""

    secret_name: Name
    """Name of a Secret in the run's namespace."""
