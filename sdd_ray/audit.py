"""Command: what similarities betray about a set's identities. See `sdd_ray.settings.AuditConfig`.

python -m sdd_ray.audit --config configs/audit.yaml [dotted.key=value ...]

It looks for images that stand under a wrong identity and names the right one, for images that fit
nowhere, for people under two names, identities that hold two people, near-duplicates, and images
that stand under two identities.
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import AuditConfig


def run(config: AuditConfig) -> None:
    """Audit the identities of a set; write tables and audit.html; print what was found.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.audit_findings import run_audit_job
    from sdd_ray.engine.audit_output import findings_text, publish
    from sdd_ray.engine.audit_report import REPORT
    from sdd_ray.engine.label_plan import plan_labels
    from sdd_ray.engine.session import session
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.run import OutputRun

    embeddings = open_dataset(config.embeddings, ["embed"])
    inputs = {"embeddings": embeddings.digest}
    if config.labels is not None:
        inputs["labels"] = open_dataset(config.labels, ["label"]).digest
    output = OutputRun(output_location(config.output), "audit", config, inputs)
    if not output.is_complete:
        plan = plan_labels(embeddings, drop_duplicates=False)
        with session(config.ray):
            found = run_audit_job(config, embeddings, plan, output.work / "rows")
        publish(found, output)
    sys.stdout.write(findings_text(output.output) + "\n")
    sys.stdout.write(f"report: {(output.output / REPORT).uri}\n")


if __name__ == "__main__":
    sys.exit(main(AuditConfig, run))
