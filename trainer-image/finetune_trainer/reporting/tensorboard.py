"""The run's steps and evaluations as TensorBoard's event files. Trouble with them never ends or slows a training.

A thread of its own writes them, and loads what it needs for that. Each attempt begins a file which says from which step
on it counts, so that steps that are done again are shown once.
"""

import io
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.reporting.appending import Appending
from finetune_trainer.reporting.background import Background
from finetune_trainer.reporting.progress import Evaluated, Step

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
PATIENCE_SECONDS = 10.0
_PREFIX = "events.out.tfevents."


class _Point(NamedTuple):
    """Figures of one step."""

    step: int
    time: float
    values: Mapping[str, float]


class Events:
    """The event files of one run: a folder with the run's name, a file for each time that a training begins in it."""

    def __init__(self, config: TrainerConfig, *, steps_done: int) -> None:
        folder = Path(config.run_path) / FOLDER / (re.sub(r"[^A-Za-z0-9._-]", "_", config.run.name).strip(".") or "run")
        self._file = Appending(folder / _new_name(folder), what="what TensorBoard shows")
        self._config = config
        self._steps_done = steps_done
        self._begun = False
        self._points = Background(self._write, name="tensorboard")

    def step(self, told: Step) -> None:
        """What a step did."""
        values = {
            "train/loss": told.loss,
            "train/grad_norm": told.grad_norm,
            "train/learning_rate": told.learning_rate,
            "train/epoch": told.epoch,
            "speed/tokens_per_second": told.tokens / max(told.seconds, 1e-9),
            "speed/step_seconds": told.seconds,
            "speed/data_wait_ratio": told.data_seconds / max(told.seconds, 1e-9),
        }
        self._points.put(_Point(told.number, time.time(), values | _if_known(told)))

    def evaluated(self, found: Evaluated) -> None:
        """What an evaluation found."""
        self._points.put(_Point(found.step, time.time(), {"eval/loss": found.loss}))

    def close(self) -> None:
        """Write what is left."""
        self._points.drain(PATIENCE_SECONDS)

    def _write(self, point: _Point, dropped: int) -> bool:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
        except ImportError as error:
            logger.warning("no event files for TensorBoard are written: %s", error)
            return False
        if dropped:
            logger.warning("the volume is slow: TensorBoard misses the figures of %d steps", dropped)
        figures = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
        event = event_pb2.Event(step=point.step, wall_time=point.time, summary=summary_pb2.Summary(value=figures))
        first = () if self._begun else _beginning(self._config, self._steps_done)
        self._begun |= self._file.add(_records(*first, event))
        return True


def _if_known(told: Step) -> dict[str, float]:
    return {} if told.mfu is None else {"speed/mfu_ratio": told.mfu}


def _new_name(folder: Path) -> str:
    """One that TensorBoard reads after those that are there, whatever this node's clock says."""
    try:
        numbers = [int(path.name.removeprefix(_PREFIX).partition(".")[0]) for path in folder.glob(f"{_PREFIX}*")]
    except (OSError, ValueError):
        numbers = []
    return f"{_PREFIX}{max([int(time.time()), *(number + 1 for number in numbers)]):010d}.finetune"


def _records(*events: Any) -> bytes:
    """As they lie in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    found = io.BytesIO()
    writer = RecordWriter(found)
    for event in events:
        writer.write(event.SerializeToString())
    return found.getvalue()


def _beginning(config: TrainerConfig, steps_done: int) -> Iterator[Any]:
    """What a file begins with: its form, where it goes on, and the settings."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    now = time.time()
    yield event_pb2.Event(wall_time=now, file_version="brain.Event:2")
    if steps_done:  # what earlier files have from the next step on is done again
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        yield event_pb2.Event(wall_time=now, step=steps_done + 1, session_log=start)
    settings = dict(_flat({"method": config.method.to_wire(), "training": config.training.to_wire()}))
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=now)
    for name, value in settings.items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            session.hparams[name].number_value = value
        else:
            session.hparams[name].string_value = str(value)
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, session_start_info=session)
    parameters = summary_pb2.Summary.Value(
        tag=metadata.SESSION_START_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    summary = summary_pb2.Summary(value=[parameters, _text("run", _table(config))])
    yield event_pb2.Event(wall_time=now, step=steps_done, summary=summary)


def _text(tag: str, markdown: str) -> Any:
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2

    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    about = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[markdown.encode()])
    return summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=tensor)


def _table(config: TrainerConfig) -> str:
    """The whole configuration, which holds no credential."""
    rows = (f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in _flat(config.to_wire()))
    return "\n".join(("| setting | value |", "| --- | --- |", *rows))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their paths, `training.learningRate`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None and value != "":
            yield f"{above}{name}", value
