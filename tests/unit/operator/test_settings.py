"""Settings: defaults, each variable, and what is said of a wrong one."""

import pytest

from finetune_operator.errors import UserError
from finetune_operator.settings import PREFIX, LogFormat, PodAccess, Settings

VALUES = {
    "trainer_image": ("registry.example.com/trainer:1", "registry.example.com/trainer:1"),
    "namespaces": ("ml, research,", ("ml", "research")),
    "pod_access": ("proxy", PodAccess.PROXY),
    "poll_seconds": ("2.5", 2.5),
    "training_poll_seconds": ("9", 9.0),
    "progress_write_seconds": ("30", 30.0),
    "stale_seconds": ("90", 90.0),
    "queued_seconds": ("8", 8.0),
    "resync_seconds": ("60", 60.0),
    "workers": ("4", 4),
    "bind_address": ("127.0.0.1", "127.0.0.1"),
    "health_port": ("0", 0),
    "metrics_port": ("9999", 9999),
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
        pytest.param("WROKERS", "3", id="a variable that isn't one"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(UserError) as raised:
        Settings.from_environment({PREFIX + name: value})
    assert raised.value.field == PREFIX + name
    assert repr(value) in raised.value.message


def test_what_kubernetes_adds_for_a_service_of_the_operators_name_is_no_setting() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_METRICS": "9401",
        "PORT": "tcp://10.0.0.1:80",
    }
    found = {PREFIX + name: value for name, value in (links | {"PORT_80_TCP_ADDR": "10.0.0.1"}).items()}
    assert Settings.from_environment(found) == Settings()
