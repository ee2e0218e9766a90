"""`make bench-measurement`: whether a comparison can be trusted: equal things called equal, a twentieth found.

Simulated comparisons draw from the latencies in benchmarks/data/latency-noise.json, which this machine recorded
(`--record` does it anew); real ones run artifacts in turns as `edgekit bench A B` does. Real comparisons that were made are
kept in build/bench-measurement: a run that is killed goes on where it was. The parts are in benchmarks/_measurement/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measurement import comparisons
from benchmarks.common import RESULTS, Results
from edgekit.core.files import write_atomic

PARTS = {"simulated": comparisons.simulated, "real": comparisons.real}
TOPIC = "measurement"
FILE = RESULTS / f"{TOPIC}.json"
PACKAGES = ("edgekit", "numpy", "ai-edge-litert")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts; all by default")
    parser.add_argument("--record", action="store_true", help="record this machine's noise anew, before anything else")
    options = parser.parse_args()
    if options.record:
        comparisons.record()
    results = Results(TOPIC, *PACKAGES)
    if set(options.only) != set(PARTS) and FILE.exists():
        # Rows of the parts that are not run now stay; those that are made anew replace the old ones in the end.
        results.rows = json.loads(FILE.read_text())
    for name in options.only:
        PARTS[name](results)
    newest = {row["name"]: row for row in results.rows}
    write_atomic(FILE, json.dumps(list(newest.values()), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
