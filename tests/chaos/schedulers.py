"""Two schedulers share an inbox and are killed: each file is still scored exactly once.

Both start the same job every second. Repeatedly one of them, or its job, is killed; a killed
scheduler is started again, like a service.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.ledger import SCORED, Ledger
from storage.places import open_location
from storage.runs import SCORES
from storage.verify import verify_run
from tests.chaos.processes import GIVEN_UP, Command, has_ended, run
from tests.chaos.scene import scene, unscored
from tests.chaos.tally import Experiment
from tests.commands.process import start_pipeline
from tests.jobs.inboxes import put_images

FILES = 8
KILLS = 5
"""Number of kills in each case."""


def job(place: Path) -> list[str]:
    """Return the arguments of the job."""
    places = ["--run", str(place / "run"), "--inbox", str(place / "inbox")]
    return ["score", *places, "--settle", "0", "--threads", "1", "--quiet"]


def command(place: Path) -> Command:
    """Return the job as a command to run directly."""
    return Command(tuple(job(place)), place / "run" / SCORES)


@cache
def expected() -> dict[str, str]:
    """Return the digest of the scores of each content, computed undisturbed."""
    place = prepare(scene().directory / "inbox-oracle")
    ended = run(command(place))
    assert 0 == ended.code, ended.err
    return scored(place / "run")


def prepare(place: Path) -> Path:
    """Create a run without scores, and an inbox with some files."""
    unscored(scene().oracle.run, place / "run")
    for number in range(FILES):
        put_images(place / "inbox" / f"{number}.idx3-ubyte", number, rows=300)
    return place


def scored(run: Path) -> dict[str, str]:
    """Return the digests in the ledger, and check that nothing was scored twice."""
    lines = [line for line in Ledger(open_location(run)).entries() if line["event"] == SCORED]
    counts = Counter(line["content"] for line in lines)
    assert set(counts.values()) <= {1}, f"scored twice: {counts}"
    return {line["content"]: line["scores_digest"] for line in lines}


@dataclass
class Service:
    """A scheduler that can be started again when it has died."""

    place: Path
    name: str
    process: "subprocess.Popen[str] | None" = field(default=None)

    def start(self) -> None:
        """Start the scheduler unless it is running."""
        if self.process is not None and self.process.poll() is None:
            return
        with open(self.log, "a") as log:
            self.process = start_pipeline(
                self.place / f"{self.name}.json",
                *job(self.place),
                cwd=self.place,
                module=("tests.jobs.every_second",),
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> Path:
        """The file with the output of the scheduler and its jobs."""
        return self.place / f"{self.name}.log"

    def jobs(self) -> list[int]:
        """Return the jobs whose start is logged and whose end is not, the latest last."""
        running = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if event["event"] == "start":
                    running.append(int(event["process"]))
                if event["event"] == "end":
                    running.clear()
        return running

    def kill(self, *, its_job: bool) -> None:
        """Kill the scheduler, or with `its_job` the job that it is running, if any."""
        assert self.process is not None
        jobs = self.jobs() if its_job else []
        with suppress(ProcessLookupError):
            os.kill(jobs[-1] if jobs else self.process.pid, signal.SIGKILL)

    def end_orphans(self) -> None:
        """Kill the jobs that outlived a killed scheduler."""
        for process in re.findall(r'"event": "start".*"process": (\d+)', self.log.read_text()):
            with suppress(OSError):
                if str(self.place).encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                    os.kill(int(process), signal.SIGKILL)
                    while Path(f"/proc/{process}/cmdline").read_bytes():
                        time.sleep(0.01)  # until it has ended

    def stop(self) -> None:
        """Stop the scheduler after its running job."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(GIVEN_UP)


def kill_schedulers(oracle: dict[str, str], case: int, chance: random.Random) -> str:
    """Kill schedulers and jobs, check the ledger after each kill, and then the final result."""
    with TemporaryDirectory(dir=scene().directory) as directory:
        place = prepare(Path(directory) / "place")
        services = [Service(place, name) for name in ("one", "two")]
        try:
            for _ in range(KILLS):
                for service in services:
                    service.start()
                victim = chance.choice(services)
                assert victim.process is not None
                has_ended(victim.process, chance.uniform(0.3, 1.5))
                victim.kill(its_job=chance.random() < 0.6)
                so_far = scored(place / "run").items()
                assert so_far <= oracle.items(), "other scores than undisturbed"
        finally:
            for service in services:
                service.stop()
                service.end_orphans()
        last = run(command(place))
        assert 0 == last.code, last.err
        assert oracle == scored(place / "run"), "other scores than undisturbed"
        wrong = [error for _, error in verify_run(open_location(place / "run")) if error]
        assert not wrong, f"verify: {wrong[0]}"
        left = [path.name for path in (place / "run" / SCORES).glob(".*") if path.suffix != ".lock"]
        assert not left, f"left behind: {left}"
        printed = "".join(service.log.read_text() for service in services)
        assert "Traceback" not in printed, printed
    return "survived"


EXPERIMENTS = (
    Experiment(
        "kill-schedulers", kill_schedulers, 10, expected, scaled_by="kills", several="threads"
    ),
)
