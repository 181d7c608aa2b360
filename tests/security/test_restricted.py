"""S3: the pod of every run that the API accepts passes Pod Security `restricted`, and stays in its namespace.

SECURITY_RUNS=10000 tries as many, SECURITY_SEED other ones. What `restricted` means is told by a function here, which
test_restricted_server.py holds against the API server's own answers.
"""

from __future__ import annotations

from tests.security import accepted, inside, restricted


def test_the_pod_of_every_accepted_run_passes() -> None:
    tried, custom, many = 0, 0, 0
    for job in accepted.jobs():
        template = job["spec"]["template"]
        pod = template["spec"]
        assert restricted.breaches(template) == [], job["metadata"]["name"]
        assert inside.escapes(job, namespace="odd") == [], job["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert "serviceAccountName" not in pod
        tried, custom, many = tried + 1, custom + ("command" in pod["containers"][0]), many + ("subdomain" in pod)
    assert tried == accepted.COUNT
    assert custom > tried / 10, "there are Custom tasks among them"
    assert many > tried / 50, "and runs on several nodes"
