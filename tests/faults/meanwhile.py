"""What happens while a crashed operator is down: the Job ends, the run is edited, or it is deleted."""

from __future__ import annotations

import time

from tests.faults.scenario import RUN, Play, Scenario

PATIENCE = 20.0


async def happen(what: str, *, play: Play, scenario: Scenario) -> None:
    """Do it, and return when it has happened."""
    match what:
        case "":
            return
        case "job-ends":
            await _job_ends(play)
        case "edit":
            await play.patch(spec=scenario.edit)
        case "delete":
            await play.delete()
        case _:
            raise ValueError(f"meanwhile: {what} is none of job-ends, edit, delete")


async def _job_ends(play: Play) -> None:
    """The trainer of the newest attempt goes on to its end, and the Job with it."""
    status = play.status(RUN) or {}
    play.open(f"a{max(1, int(status.get('attempt', 0)))}.all")
    began = time.monotonic()
    await play.history.until(lambda: _all_ended(play), deadline=lambda: began + PATIENCE)


def _all_ended(play: Play) -> bool:
    jobs = play.history.there("job")
    ends = [{c["type"] for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"} for job in jobs]
    return all(end & {"Complete", "Failed"} for end in ends)
