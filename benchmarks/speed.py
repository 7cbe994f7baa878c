"""How long `python -m dsocr_graph.analyze` takes, cold and from the cache, and how much memory it needs.

Runs the command as a user would, in a process of its own, once with an empty cache and several times with a warm one.
Prints a table and writes benchmarks/results/speed.json.

    python benchmarks/speed.py [--warm-runs N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "speed.json"
COLD_SECONDS, COLD_GIB, WARM_SECONDS = 60.0, 2.5, 2.0


def timed_run(cache: Path, out: Path, *, check: str = "pass") -> tuple[float, float]:
    """Run the standard analysis once; return wall seconds and the peak resident memory in GiB."""
    program = (
        f"import sys, dsocr_graph.analyze as a; status = a.main(['--out', {str(out)!r}]); {check}; sys.exit(status)"
    )
    environment = {**os.environ, "DSOCR_GRAPH_CACHE": str(cache)}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"the analysis failed with status {process.returncode}; run it by hand to see why")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return seconds, usage.ru_maxrss * unit / 2**30


def main() -> int:
    """Measure, print, write; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache, out = Path(directory) / "cache", Path(directory) / "out"
        cold_seconds, cold_gib = timed_run(cache, out)
        without_torch = "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
        warm = [timed_run(cache, out, check=without_torch) for _ in range(options.warm_runs)]
    warm_seconds = statistics.median(seconds for seconds, _ in warm)
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in ("torch", "sympy", "onnx")},
        "cold": {"seconds": round(cold_seconds, 2), "peak_gib": round(cold_gib, 3)},
        "warm": {
            "runs": len(warm),
            "median_seconds": round(warm_seconds, 3),
            "max_seconds": round(max(seconds for seconds, _ in warm), 3),
            "peak_gib": round(max(gib for _, gib in warm), 3),
            "imports_torch": False,
        },
        "goals": {"cold_seconds": COLD_SECONDS, "cold_peak_gib": COLD_GIB, "warm_seconds": WARM_SECONDS},
    }
    met = cold_seconds < COLD_SECONDS and cold_gib < COLD_GIB and warm_seconds < WARM_SECONDS
    result["goals_met"] = met
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'run':<6} {'seconds':>9} {'goal':>6} {'peak GiB':>9} {'goal':>6}")
    print(f"{'cold':<6} {cold_seconds:>9.2f} {COLD_SECONDS:>6.0f} {cold_gib:>9.2f} {COLD_GIB:>6.1f}")
    print(f"{'warm':<6} {warm_seconds:>9.2f} {WARM_SECONDS:>6.0f} {result['warm']['peak_gib']:>9.2f} {'':>6}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
