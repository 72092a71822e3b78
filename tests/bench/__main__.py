"""`make bench`: the service beside what people would use instead, in one run, as ratios."""

from __future__ import annotations

import argparse

import measures

PARTS = {
    "jobs": measures.jobs,
    "clients": measures.clients,
    "logs": measures.logs,
    "follow": measures.follow,
    "scale": measures.scale,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; default: everything")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    options = parser.parse_args()
    rows = []
    for name in options.parts or PARTS:
        for row in PARTS[name]():
            rows.append(row)
            if not options.json:
                measures.show([row], as_json=False)
    if options.json:
        measures.show(rows, as_json=True)


main()
