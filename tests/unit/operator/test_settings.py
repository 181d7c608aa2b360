"""Settings: defaults, each variable, and what is said of a wrong one."""

import pytest

from finetune_operator.errors import UserError
from finetune_operator.settings import PREFIX, Limits, LogFormat, PodAccess, Settings

VALUES = {
    "trainer_image": ("registry.example.com/trainer:1", "registry.example.com/trainer:1"),
    "namespaces": ("ml, research,", ("ml", "research")),
    "pod_access": ("proxy", PodAccess.PROXY),
    "poll_seconds": ("2.5", 2.5),
    "training_poll_seconds": ("9", 9.0),
    "progress_write_seconds": ("30", 30.0),
    "progress_writes_per_second": ("7.5", 7.5),
    "max_active_runs_per_namespace": ("25", 25),
    "max_active_devices": ("nvidia.com/gpu=64, amd.com/gpu = 8,", {"nvidia.com/gpu": 64, "amd.com/gpu": 8}),
    "stale_seconds": ("90", 90.0),
    "queued_seconds": ("8", 8.0),
    "resync_seconds": ("60", 60.0),
    "workers": ("4", 4),
    "lease_seconds": ("30", 30),
    "lease_name": ("team-a", "team-a"),
    "lease_namespace": ("operators", "operators"),
    "bind_address": ("127.0.0.1", "127.0.0.1"),
    "health_port": ("0", 0),
    "metrics_port": ("9999", 9999),
    "metrics_authentication": ("true", True),
    "metrics_tls_folder": ("/etc/tls", "/etc/tls"),
    "run_metrics_seconds": ("120", 120.0),
    "kueue_priority_boost": ("true", True),
    "kueue_priority_boost_seconds": ("1200", 1200.0),
    "log_format": ("json", LogFormat.JSON),
}


def test_every_setting_is_tried_here() -> None:
    assert set(VALUES) == set(Settings.model_fields)


@pytest.mark.parametrize("name", VALUES)
def test_each_setting_comes_from_its_variable(name: str) -> None:
    text, value = VALUES[name]
    found = Settings.from_environment({PREFIX + name.upper(): text, "PATH": "/bin"})
    assert getattr(found, name) == value
    assert found == Settings().model_copy(update={name: value})


def test_without_variables_the_defaults_hold() -> None:
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("WORKERS", "many", id="a number that is none"),
        pytest.param("WORKERS", "0", id="no workers"),
        pytest.param("POLL_SECONDS", "0", id="no pause"),
        pytest.param("POD_ACCESS", "telepathy", id="an unknown choice"),
        pytest.param("METRICS_PORT", "70000", id="a port that can't be"),
        pytest.param("LEASE_SECONDS", "2", id="a lease too short to be renewed"),
        pytest.param("LEASE_NAME", "Team A", id="a name that Kubernetes refuses"),
        pytest.param("LEASE_NAMESPACE", "a/b", id="a namespace that can't be"),
        pytest.param("WROKERS", "3", id="a variable that isn't one"),
        pytest.param("MAX_ACTIVE_RUNS_PER_NAMESPACE", "0", id="no run at all"),
        pytest.param("MAX_ACTIVE_RUNS_PER_NAMESPACE", "none", id="a limit that is no number"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(UserError) as raised:
        Settings.from_environment({PREFIX + name: value})
    assert raised.value.field == PREFIX + name
    assert repr(value) in raised.value.message


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        pytest.param("nvidia.com/gpu=many", "'many'", id="no number"),
        pytest.param("nvidia.com/gpu=-1", "'-1'", id="below 0"),
        pytest.param("nvidia.com/gpu", "''", id="nothing"),
        pytest.param("amd.com/gpu=8,nvidia.com/gpu=1.5", "'1.5'", id="half a device"),
    ],
)
def test_a_wrong_number_of_devices_is_named_with_its_resource(value: str, wrong: str) -> None:
    with pytest.raises(UserError) as raised:
        Settings.from_environment({PREFIX + "MAX_ACTIVE_DEVICES": value})
    assert raised.value.field == PREFIX + "MAX_ACTIVE_DEVICES"
    assert raised.value.message.startswith("nvidia.com/gpu: ")
    assert wrong in raised.value.message


def test_limits_are_ten_runs_a_namespace_and_any_number_of_devices_until_told_otherwise() -> None:
    assert Settings().limits == Limits(10, {})
    told = {PREFIX + "MAX_ACTIVE_RUNS_PER_NAMESPACE": "", PREFIX + "MAX_ACTIVE_DEVICES": "nvidia.com/gpu=0"}
    assert Settings.from_environment(told).limits == Limits(None, {"nvidia.com/gpu": 0})
    nothing = {PREFIX + "MAX_ACTIVE_DEVICES": ""}
    assert Settings.from_environment(nothing) == Settings()


def test_what_kubernetes_adds_for_a_service_of_the_operators_name_is_no_setting() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_METRICS": "9401",
        "PORT": "tcp://10.0.0.1:80",
    }
    found = {PREFIX + name: value for name, value in (links | {"PORT_80_TCP_ADDR": "10.0.0.1"}).items()}
    assert Settings.from_environment(found) == Settings()
