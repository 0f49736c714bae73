"""Run all experiments many times, and print a table of the outcomes.

    python -m tests.chaos [--kills N] [--flips N] [--seed S] [--jobs J] [--only NAME,NAME]
    python -m tests.chaos --cluster

Each failure is printed with a command that repeats it alone, by its `--case`.
"""

import argparse
import os
import sys
from importlib import import_module

from tests.chaos.tally import Experiment, Plan, Tally

MODULES = (
    "faults",
    "crashes",
    "kills",
    "signals",
    "writers",
    "schedulers",
    "clock",
    "leaks",
    "damage",
    "hostile",
)
"""Modules, each with a tuple `EXPERIMENTS` whose cases may run in parallel."""
DEFAULTS = {"kills": 200, "flips": 5000}
"""Default values, to which the experiments' counts refer; other values scale the counts."""


def experiments(only: set[str], cluster: bool = False) -> list[Experiment]:
    """Return the experiments with these names or in these modules; all, if none is named."""
    modules = (*MODULES, "cluster") if only else ("cluster",) if cluster else MODULES
    return [
        experiment
        for module in modules
        for experiment in import_module(f"tests.chaos.{module}").EXPERIMENTS
        if not only or {module, experiment.name} & only
    ]


def main() -> int:
    """Run the experiments; return 0 if every case ended well."""
    options = _options()
    chosen = experiments(set(filter(None, options.only.split(","))), options.cluster)
    if not chosen or (options.case is not None and len(chosen) > 1):
        print("--only names no experiment, or --case more than one.", file=sys.stderr)
        return 2
    tally = Tally()
    for experiment in chosen:
        count = experiment.count
        if experiment.scaled_by:
            wanted = getattr(options, experiment.scaled_by)
            count = max(1, round(count * wanted / DEFAULTS[experiment.scaled_by]))
        print(f"{experiment.name} ...", file=sys.stderr, flush=True)
        failed = len(tally.failures)
        experiment.run(Plan(count, options.seed, options.jobs, options.case), tally)
        for failure in tally.failures[failed:]:
            print(failure, flush=True)
    print(tally.table())
    return 1 if tally.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in DEFAULTS.items():
        help_text = f"number of {name}; other counts scale with it (default: {default:,})"
        parser.add_argument(f"--{name}", type=int, default=default, help=help_text)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="cases to run at the same time"
    )
    parser.add_argument(
        "--only", default="", metavar="NAMES", help=f"experiments to run: {', '.join(MODULES)}"
    )
    parser.add_argument(
        "--cluster", action="store_true", help="run jobs on clusters whose workers keep dying"
    )
    parser.add_argument("--case", type=int, help="run this case of --only alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
