"""The Grafana dashboards that the chart ships, as code: `python -m charts.dashboards` writes them, `--check` compares.

Every query is over families of docs/metrics.md. What a run's pod exports is found by `finetune_trainer_info`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FOLDER = Path(__file__).parent / "finetune-operator" / "files" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUN = '{namespace="$namespace",run="$run"}'
POD = '* on (instance) group_left () finetune_trainer_info{namespace="$namespace",run="$run"}'

STEPS, SAVES = "finetune_trainer_step_duration_seconds", "finetune_trainer_checkpoint_duration_seconds"

Panel = timeseries.Panel | stat.Panel
Row = tuple[str, Sequence[Panel]]
"""A heading, and what is under it."""


def line(title: str, unit: str, *queries: tuple[str, str], about: str = "", width: int = 12) -> timeseries.Panel:
    """Values over time; each query with the name of its line."""
    panel = timeseries.Panel().title(title).description(about).unit(unit).datasource(SOURCE).span(width).height(8)
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    panel = panel.legend(legend).fill_opacity(8).line_width(2).min(0)
    for number, (query, name) in enumerate(queries):
        panel = panel.with_target(prometheus.Dataquery().expr(query).legend_format(name).ref_id(chr(65 + number)))
    return panel


def figure(title: str, unit: str, query: str, *, about: str = "", width: int = 4) -> stat.Panel:
    """One value."""
    target = prometheus.Dataquery().expr(query).instant().ref_id("A")
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(4)
        .with_target(target)
    )


def quantiles(buckets: str, middle: str = "0.5", high: str = "0.99") -> tuple[tuple[str, str], tuple[str, str]]:
    """Two queries over the buckets of a histogram: its median, and a high quantile."""
    half, most = (f"histogram_quantile({share}, sum by (le) ({buckets}))" for share in (middle, high))
    return (half, "median"), (most, f"{float(high):.0%}".replace("%", " %"))


def board(uid: str, title: str, about: str) -> dashboard.Dashboard:
    """A dashboard without panels, with a choice of the data source."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    found = dashboard.Dashboard(title).uid(uid).description(about).tags(["finetune-operator"]).readonly()
    return found.refresh("30s").time("now-6h", "now").timezone("browser").with_variable(source)


def now() -> Row:
    """What there is at this moment."""
    return (
        "Now",
        (
            figure("Active runs", "short", "sum(finetune_operator_active_runs)"),
            figure("Waiting runs", "short", "sum(finetune_operator_waiting_runs)"),
            figure("Devices in use", "short", "sum(finetune_operator_active_devices) or vector(0)"),
            figure(
                "Device hours, 24 h",
                "h",
                "sum(sum_over_time(finetune_operator_active_devices[24h:1m])) / 60 or vector(0)",
                about="Devices of active runs, summed minute by minute over the last 24 hours.",
            ),
            figure(
                "Ended well, 24 h",
                "percentunit",
                'sum(increase(finetune_operator_runs_ended_total{phase="Completed"}[24h]))'
                ' / sum(increase(finetune_operator_runs_ended_total{phase=~"Completed|Failed"}[24h])) or vector(1)',
                about="Of the runs that completed or failed; canceled ones left out.",
            ),
            figure("Operators that lead", "short", "sum(finetune_operator_leader)"),
        ),
    )


def runs() -> Row:
    """What runs do over time."""
    return (
        "Runs",
        (
            line("Runs by phase", "short", ("finetune_operator_runs > 0", "{{phase}}")),
            line(
                "Active and waiting by namespace",
                "short",
                ("finetune_operator_active_runs", "{{namespace}} active"),
                ("finetune_operator_waiting_runs", "{{namespace}} waiting"),
            ),
            line(
                "Throughput by namespace",
                "short",
                (
                    "sum by (namespace) (finetune_run_tokens_per_second_per_device)",
                    "{{namespace}} tokens/s and device",
                ),
            ),
            line(
                "Time from creation to start",
                "s",
                *quantiles("increase(finetune_operator_queue_wait_seconds_bucket[6h])", high="0.95"),
            ),
            line("Goodput", "percentunit", ("finetune_run_goodput_ratio", "{{namespace}}/{{run}}")),
            line("Progress", "percentunit", ("finetune_run_progress_ratio", "{{namespace}}/{{run}}")),
        ),
    )


def trouble() -> Row:
    """What goes wrong."""
    return (
        "Trouble",
        (
            line(
                "Restarts by reason",
                "short",
                ("sum by (reason) (increase(finetune_operator_restarts_total[1h]))", "{{reason}}"),
            ),
            line("Lost steps", "short", ("increase(finetune_operator_lost_steps_total[1h])", "steps an hour")),
        ),
    )


def operators_work() -> Row:
    """The operator's own work."""
    return (
        "The operator",
        (
            line(
                "One look at a run",
                "s",
                *quantiles("rate(finetune_operator_reconcile_duration_seconds_bucket[$__rate_interval])"),
            ),
            line(
                "Requests to the API server",
                "reqps",
                (
                    "sum by (verb, code) (rate(finetune_operator_api_requests_total[$__rate_interval]))",
                    "{{verb}} {{code}}",
                ),
            ),
            line("Runs that wait for a worker", "short", ("finetune_operator_queue_depth", "{{instance}}")),
            line(
                "Age of the last full list",
                "s",
                ("time() - finetune_operator_last_resync_timestamp_seconds", "{{instance}}"),
            ),
        ),
    )


def overview() -> dashboard.Dashboard:
    """All runs."""
    found = board("finetune-overview", "Fine-tuning: overview", "Queue, active runs, success and device hours.")
    return with_rows(found, (now(), runs(), trouble(), operators_work()))


def run_now() -> Row:
    """How far one run is."""
    return (
        "$run",
        (
            figure("Progress", "percentunit", f"finetune_run_progress_ratio{RUN}"),
            figure("Time left", "s", f"finetune_run_eta_seconds{RUN}"),
            figure("Loss", "short", f"finetune_run_loss{RUN}"),
            figure(
                "Goodput",
                "percentunit",
                f"finetune_run_goodput_ratio{RUN}",
                about="Time in steps that count, over all time.",
            ),
            figure("Attempt", "short", f"finetune_run_attempt{RUN}"),
            figure(
                "Age of the newest checkpoint", "s", f"time() - finetune_run_last_checkpoint_timestamp_seconds{RUN}"
            ),
        ),
    )


def run_learning() -> Row:
    """What it learns."""
    return (
        "Learning",
        (
            line(
                "Loss",
                "short",
                (f"finetune_run_loss{RUN}", "training"),
                (f"finetune_run_eval_loss{RUN}", "evaluation"),
            ),
            line("Learning rate", "sci", (f"finetune_run_learning_rate{RUN}", "learning rate")),
            line("Gradient norm", "short", (f"finetune_trainer_grad_norm {POD}", "before clipping")),
            line("Tokens", "short", (f"finetune_run_trained_tokens{RUN}", "trained on")),
        ),
    )


def run_speed() -> Row:
    """How fast it is, and what that takes."""
    return (
        "Speed",
        (
            line("Throughput", "short", (f"finetune_run_tokens_per_second_per_device{RUN}", "tokens/s and device")),
            line(
                "Step time",
                "s",
                *quantiles(f"rate({STEPS}_bucket[$__rate_interval]) {POD}"),
            ),
            line(
                "Waiting for data, and model FLOPs utilization",
                "percentunit",
                (f"finetune_run_data_wait_ratio{RUN}", "waiting for data, share of step time"),
                (f"finetune_run_mfu_ratio{RUN}", "MFU, share of the device's peak"),
                about="Above a few percent of waiting: slow volume or very short steps. MFU where the peak is known.",
            ),
            line(
                "Utilisation",
                "short",
                (f"finetune_run_device_utilization_ratio{RUN}", "device, share of time"),
                (f"finetune_trainer_cpu_utilization_cores {POD}", "CPU cores"),
            ),
            line(
                "Memory",
                "bytes",
                (f"finetune_trainer_device_memory_used_bytes {POD}", "used, {{device}}"),
                (f"finetune_trainer_device_memory_peak_bytes {POD}", "peak, {{device}}"),
                (f"finetune_trainer_device_memory_total_bytes {POD}", "limit, {{device}}"),
            ),
            line("Power", "watt", (f"finetune_trainer_device_power_watts {POD}", "{{device}}")),
            line("Temperature", "celsius", (f"finetune_trainer_device_temperature_celsius {POD}", "{{device}}")),
        ),
    )


def run_checkpoints() -> Row:
    """What it saves."""
    return (
        "Checkpoints",
        (
            line(
                "Time to save",
                "s",
                (
                    f"sum(increase({SAVES}_sum[10m]) {POD}) / sum(increase({SAVES}_count[10m]) {POD})",
                    "mean over 10 minutes",
                ),
            ),
            line("Size", "bytes", (f"finetune_run_last_checkpoint_size_bytes{RUN}", "newest")),
        ),
    )


def run() -> dashboard.Dashboard:
    """One run."""
    found = board("finetune-run", "Fine-tuning: one run", "Loss, throughput, devices, steps, checkpoints and restarts.")
    for name, query in (
        ("namespace", "label_values(finetune_run_info, namespace)"),
        ("run", 'label_values(finetune_run_info{namespace="$namespace"}, run)'),
    ):
        variable = dashboard.QueryVariable(name).label(name.capitalize()).query(query).datasource(SOURCE)
        found = found.with_variable(variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))
    for title, query, color in (
        ("Checkpoints", f"changes(finetune_run_last_checkpoint_timestamp_seconds{RUN}[1m]) > 0", "green"),
        ("Restarts", f"changes(finetune_run_attempt{RUN}[1m]) > 0", "orange"),
    ):
        found = found.annotation(annotation(title, query, color))
    return with_rows(found, (run_now(), run_learning(), run_speed(), run_checkpoints()))


def annotation(title: str, query: str, color: str) -> dashboard.AnnotationQuery:
    """Marks over all panels."""
    return dashboard.AnnotationQuery().name(title).datasource(SOURCE).enable(True).icon_color(color).expr(query)


def with_rows(found: dashboard.Dashboard, rows: Sequence[Row]) -> dashboard.Dashboard:
    """The dashboard with panels under headings, as wide as they want to be."""
    for title, panels in rows:
        found = found.with_row(dashboard.Row(title))
        for panel in panels:
            found = found.with_panel(panel)
    return found


DASHBOARDS = {"overview": overview, "run": run}


def text(name: str) -> str:
    """A dashboard as Grafana reads it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(DASHBOARDS[name]().build()) + "\n"


def main() -> int:
    """Write the files, or with --check say which differ. Returns 1 if one does."""
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards of the chart.")
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    code = 0
    for name in DASHBOARDS:
        file, wanted = FOLDER / f"{name}.json", text(name)
        if check and (not file.exists() or json.loads(file.read_text()) != json.loads(wanted)):
            sys.stderr.write(f"{file.name} isn't what charts/dashboards.py makes: run make generate\n")
            code = 1
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
