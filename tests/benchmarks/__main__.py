"""Run benchmarks, print one table and write JSON: `python -m tests.benchmarks [NAMES]`."""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from jobs.commands.tables import table
from jobs.training.environment import environment

try:
    from tests.benchmarks.cluster import bench_cluster
    from tests.benchmarks.contest import Verdict
    from tests.benchmarks.data import CORES, SOURCE, Workplace
    from tests.benchmarks.distortions import bench_distorted, bench_distortions
    from tests.benchmarks.drift import bench_drift
    from tests.benchmarks.epochs import bench_epochs, bench_step
    from tests.benchmarks.learning import LearningVerdict, bench_learning, learning_table
    from tests.benchmarks.pictures import bench_pictures
    from tests.benchmarks.processes import (
        bench_help,
        bench_ingest,
        bench_start,
        bench_to_98,
        bench_train,
    )
    from tests.benchmarks.profiles import bench_profile
    from tests.benchmarks.scale import bench_latency, bench_scale
    from tests.benchmarks.sources import ROWS, bench_sources
    from tests.benchmarks.streams import bench_score, bench_stream
except ModuleNotFoundError as missing:
    sys.exit(f"The benchmarks need {missing.name}. Run: pip install -e '.[bench]'")

BENCHMARKS = {
    "help": bench_help,
    "stream": bench_stream,
    "distortions": bench_distortions,
    "distorted": bench_distorted,
    "ingest": bench_ingest,
    "score": bench_score,
    "epochs": bench_epochs,
    "step": bench_step,
    "start": bench_start,
    "train": bench_train,
    "to-98": bench_to_98,
    "latency": bench_latency,
}
PEERS = ("epochs", "to-98", "stream", "score", "start", "distorted")
"""The comparisons with JAX, with PyTorch and with physical limits: `peers` names all of them."""
LARGE = {
    "profile": bench_profile,
    "scale": bench_scale,
    "cluster": bench_cluster,
    "learning": bench_learning,
    "pictures": bench_pictures,
    "sources": bench_sources,
    "drift": bench_drift,
}
"""Benchmarks that take long or much disk space; they run only if named."""


def main() -> None:
    """Run the named benchmarks, by default all but the large ones."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Run benchmarks, print one table and write JSON.",
    )
    names_help = (
        f"any of {', '.join(BENCHMARKS | LARGE)} (default: all but {', '.join(LARGE)}); "
        f"peers: {', '.join(PEERS)}"
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=names_help)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison, or seeds")
    quick_help = "fewer rows, to see that the benchmarks run; its figures mean nothing"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="file to write")
    parser.add_argument(
        "--long", action="store_true", help="learning: train for hours too; sources: ten times ROWS"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="sources: rows of each file")
    learning = parser.add_argument_group("learning")
    holdout_help = "measure errors on held-out training rows, to choose settings"
    learning.add_argument("--holdout", action="store_true", help=holdout_help)
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    if "peers" in names:
        names[names.index("peers") : names.index("peers") + 1] = PEERS
    of_learning = partial(bench_learning, long=arguments.long, holdout=arguments.holdout)
    of_sources = partial(bench_sources, rows=arguments.rows, long=arguments.long)
    known = BENCHMARKS | LARGE | {"learning": of_learning, "sources": of_sources}
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    verdicts: list[Verdict] = []
    began = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        workplace = Workplace(Path(scratch), arguments.quick)
        for name in names:
            for verdict in known[name](workplace, arguments.rounds):
                verdicts.append(verdict)
                print(f"{verdict.name}: {verdict.figure:,.3f}  {verdict.note}", file=sys.stderr)
    load = f"load {began[0]:.2f} before and {os.getloadavg()[0]:.2f} after"
    print(f"{SOURCE} on {CORES} cores, {load}: {environment()}\n")
    print(_tables(verdicts))
    document = {"environment": environment(), "cores": CORES, "source": SOURCE}
    document["verdicts"] = [verdict.to_json() for verdict in verdicts]
    arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def _tables(verdicts: list[Verdict]) -> str:
    """Return a table of errors and one of the other figures, if there are any."""
    errors = [verdict for verdict in verdicts if isinstance(verdict, LearningVerdict)]
    others = [verdict for verdict in verdicts if not isinstance(verdict, LearningVerdict)]
    tables = ([learning_table(errors)] if errors else []) + ([_table(others)] if others else [])
    return "\n\n".join(tables)


def _table(verdicts: list[Verdict]) -> str:
    rows = [
        [
            verdict.name,
            _target(verdict),
            f"{verdict.figure:,.0f}" if verdict.figure > 1000 else f"{verdict.figure:.2f}",
            ("met" if verdict.met else "MISSED") if verdict.target else "",
        ]
        for verdict in verdicts
    ]
    return table(["what", "target", "figure", "verdict"], rows)


def _target(verdict: Verdict) -> str:
    if verdict.target is None:
        return ""
    return f"{'>=' if verdict.at_least else '<='} {verdict.target:,g}"


if __name__ == "__main__":
    main()
