"""Whether hangs are found, and nothing else is: 100 slow runs that work beside 5 that hang, on a real control plane.

    python -m benchmarks.hangs [--slow 100] [--hung 5] [--seconds 60]

The trainers are stubs. All claim that their last step was an hour ago; the slow ones that they keep a CPU core busy,
the others that they don't. All ask to be restarted when they hang. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from benchmarks import lab
from finetune_operator import failures, policy
from tests.cluster.stage import Object, Stage, condition

NAMESPACE = "default"
RECOVERY = {"onHang": "Restart", "maxRestartsWithoutProgress": 100}
SMALL = {"cpu": "10m", "memory": "10Mi"}


def main() -> int:
    """Run it. Returns 1 if a slow run was touched, or a hung one wasn't ended after three restarts."""
    parser = argparse.ArgumentParser(description="Look for hangs among slow runs on a real control plane.")
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--hung", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="for which the slow ones are watched")
    given = parser.parse_args()
    slow = [f"slow-{number}" for number in range(given.slow)]
    hung = [f"hung-{number}" for number in range(given.hung)]
    with lab.trainings() as (plane, _):
        stage = Stage(plane.api(), NAMESPACE)
        for name in slow:
            submit(stage, name, hung_cpu=1.0)
        for name in slow:
            stage.until(name, lambda status: status.get("progress", {}).get("batch") == 1, seconds=300)
        for name in hung:
            submit(stage, name, hung_cpu=0.0)
        began = time.monotonic()
        ends = [stage.finished(name, seconds=300) for name in hung]
        ended = time.monotonic() - began
        time.sleep(max(0.0, given.seconds - ended))
        lives = [stage.status(name) for name in slow]
    touched = sum(
        status["attempt"] > 1
        or condition(status, "Degraded")["reason"] == failures.HUNG
        or status["phase"] != "Running"
        for status in lives
    )
    verdicts = [(status["attempt"], status["failure"]["reason"]) for status in ends]
    report = {
        "slow": given.slow,
        "touched": touched,
        "hung": given.hung,
        "attemptsOfTheHung": sorted({attempt for attempt, _ in verdicts}),
        "reasons": sorted({reason for _, reason in verdicts}),
        "secondsToTheLastVerdict": round(ended, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    right = set(verdicts) == {(1 + policy.HANG_RESTARTS, failures.HUNG)}
    return 0 if right and not touched else 1


def looks_hung(status: Object) -> bool:
    """Whether the operator took it for hung."""
    return bool(condition(status, "Degraded")["reason"] == failures.HUNG)


def submit(stage: Stage, name: str, *, hung_cpu: float) -> None:
    """A run that makes one step and no more."""
    script = {"hang_at": 2, "hung_cpu": hung_cpu, "checkpoint_every": 100}
    stage.submit(name, script=script, recovery=RECOVERY, resources=SMALL)


if __name__ == "__main__":
    sys.exit(main())
