"""A verification as JSON: everything that was compared and every difference, for other programs."""

from __future__ import annotations

import json
from typing import Any

from attrs import asdict

from dsocr_graph.verification.records import Check, Difference, StageVerification, Verification

SCHEMA_VERSION = 2


def verification_json(verification: Verification) -> str:
    """Return a verification as JSON text.

    Examples
    --------
    >>> from dsocr_graph.verification.records import Subject
    >>> parameters = Check(subject=Subject.PARAMETERS, compared=3, unit="modules")
    >>> toy = Verification(model="toy", variant={}, torch="2.13.0", parameters=parameters, stages=())
    >>> json.loads(verification_json(toy))["unexplained"]
    0
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": verification.model,
        "variant": dict(verification.variant),
        "torch": verification.torch,
        "unexplained": len(verification.unexplained),
        "left_out": dict(verification.left_out),
        "unclassified": [asdict(each) for each in verification.unclassified],
        "parameters": _check(verification.parameters),
        "stages": [_stage(stage) for stage in verification.stages],
    }
    return json.dumps(document, indent=1) + "\n"


def _stage(stage: StageVerification) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "bindings": dict(stage.bindings),
        "flops": stage.flops,
        "operators": stage.operators,
        "notes": list(stage.notes),
        "checks": [_check(check) for check in stage.checks],
        "decompositions": [
            {"op": each.op, "calls": each.calls, "runs": dict(each.runs), "why": each.why}
            for each in stage.decompositions
        ],
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "subject": check.subject.value,
        "compared": check.compared,
        "unit": check.unit,
        "differences": [_difference(difference) for difference in check.differences],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "module": difference.module,
        "what": difference.what,
        "run": difference.run,
        "graph": difference.graph,
        "instances": difference.instances,
        "reason": None if difference.reason is None else difference.reason.value,
    }
