"""What was found, how bad it is, and what mends it; told as lines or as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Severity = Literal["ok", "note", "warning", "error"]
BAD = ("warning", "error")


class Finding(NamedTuple):
    """One thing that was looked at.

    An error stops a run or makes its numbers worthless, a warning may; a note is to be known.
    """

    severity: Severity
    what: str
    mend: str = ""  # a command or a flag; "": nothing is to be done, or `what` says it in words


Findings = Mapping[str, Sequence[Finding]]
"""What was found in each part: versions, devices, data set, model."""


def count(found: Findings, severity: Severity) -> int:
    """How many findings are so bad."""
    return sum(finding.severity == severity for part in found.values() for finding in part)


def to_json(found: Findings) -> str:
    """One object: a list for each part, and how many errors and warnings there are."""
    parts = {name: [finding._asdict() for finding in part] for name, part in found.items()}
    sums = {"errors": count(found, "error"), "warnings": count(found, "warning")}
    return json.dumps(parts | sums, indent=2, ensure_ascii=False)


def to_text(found: Findings) -> str:
    """A line for each finding and one below it for what mends it; the last line is the sum."""
    lines = []
    for name, part in found.items():
        lines.append(name)
        for severity, what, mend in part:
            lines.append(f"  {severity:8}{what}")
            lines += [f"  {'':8}{'mend: ' * (severity in BAD)}{mend}"] * bool(mend)
    errors, warnings = count(found, "error"), count(found, "warning")
    lines.append(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return "\n".join(lines)
