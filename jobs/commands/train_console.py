"""What a training tells people while it runs and when it ends."""

from jobs.commands.console import Console, Report, settings_text
from jobs.commands.reports import epoch_line
from jobs.output import percent
from jobs.training.config import TrainConfig
from jobs.training.history import Metrics
from jobs.training.job import TrainListener, TrainResult
from storage.runs import Run


class ConsoleListener(TrainListener):
    """Shows a training on a console."""

    def __init__(self, console: Console) -> None:
        """Everything goes to `console`."""
        self._console = console
        self._epochs = 0

    def planned(self, memory: int) -> None:
        """Before anything is made."""
        self._console.say(f"memory at most {memory / 1e6:,.0f} MB")

    def started(self, run: Run, config: TrainConfig, resumed_at: str | None) -> None:
        """The effective configuration, and where the run goes on."""
        self._epochs = config.epochs
        self._console.say(f"run {run.location}\n{settings_text(config.to_json())}")
        if resumed_at:
            self._console.say(f"resumed from checkpoint {resumed_at}")

    def warned(self, text: str) -> None:
        """On stderr, even when quiet."""
        self._console.warn(text)

    def stepped(self, epoch: int, rows: int, total: int, loss: float) -> None:
        """A progress bar per epoch."""
        self._console.progress(f"epoch {epoch}/{self._epochs}", rows, total, f"loss {loss:.4f}")

    def finished_epoch(self, metrics: Metrics) -> None:
        """A line per epoch."""
        self._console.say(epoch_line(metrics, self._epochs))


def train_report(result: TrainResult) -> Report:
    """What a training came to."""
    last = result.metrics[-1] if result.metrics else None
    document = {
        "run": str(result.run.location),
        "epochs": list(result.metrics),
        "parameters_digest": result.parameters_digest,
        "order_digest": result.order_digest,
        "best": str(result.best) if result.best else None,
        "already_done": result.already_done,
        "stopped_early": result.stopped_early,
        "configuration": result.config.to_json(),
    }
    lines = []
    if result.already_done:
        lines.append(f"{result.run.location} is trained already.")
    if result.stopped_early:
        lines.append("Stopped early: the validation did not get better any more.")
    if last:
        found = [
            f"{name} {percent(value['accuracy'])}" for name, value in last["evaluation"].items()
        ]
        lines.append(f"epoch {last['epoch']}: {', '.join(found) or 'not evaluated'}")
    lines.append(f"model  {result.parameters_digest}\norder  {result.order_digest}")
    return Report(document, "\n".join(lines))
