"""Reports on runs and training, for scripts and for people."""

from typing import TYPE_CHECKING, Any

from jobs.commands.console import Report
from jobs.commands.tables import (
    SHORT_DIGEST,
    facts,
    fit,
    settings_text,
    table,
    terminal_width,
    wrap,
)
from jobs.output import average_text, one_line, percent
from jobs.training.config import TrainConfig
from jobs.training.history import EpochTable, check_history
from jobs.training.select_checkpoint import snapshots
from storage.checkpoints import CheckpointName, list_checkpoints, load_checkpoint, recorded_metrics
from storage.errors import BadDataError, counted
from storage.runs import METRICS, RECORD, SCORES, Run
from storage.scores import scoring_homes

if TYPE_CHECKING:
    from jobs.training.result import TrainResult


def inspect_run(run: Run) -> Report:
    """Report the configuration, epochs, checkpoints and scores of a run."""
    metrics = check_history(recorded_metrics(run), f"{run.location}/{METRICS}")
    config = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    marked = snapshots(config, config.epochs)
    checkpoints = [
        _checkpoint_document(run, name, name in marked) for name in list_checkpoints(run)
    ]
    scores = scoring_homes(run.location.child(SCORES))
    failure = run.failure()
    document = {
        "kind": "run",
        "location": str(run.location),
        "configuration": run.configuration,
        "recipe": run.recipe,
        "parent": run.parent and {**run.parent, "place": run.parent_place},
        "failure": failure,
        "dataset_digest": run.dataset_digest,
        "versions": run.versions,
        "environment": run.environment,
        "epochs": metrics,
        "checkpoints": checkpoints,
        "scores": scores,
    }
    parts = [
        facts(
            [
                ("run", run.location),
                ("dataset", run.dataset_digest[:SHORT_DIGEST]),
                *([("recipe", run.recipe)] if run.recipe else []),
                *([("parent", _parent_text(run))] if run.parent else []),
                *run.environment.items(),
            ]
        ),
        "configuration\n" + settings_text(run.configuration),
        _epochs_text(metrics, run.configuration["epochs"]),
        _checkpoints_table(checkpoints) if checkpoints else "No checkpoint yet.",
    ]
    if failure:
        parts.append(
            "\n".join(wrap(f"The last training failed: {one_line(failure)}", terminal_width()))
        )
    if scores:
        parts.append("scores\n" + "\n".join(f"  scores/{name}" for name in scores))
    digests = [("dataset", run.dataset_digest)]
    digests += [("parent", run.parent["model_digest"])] if run.parent else []
    digests += [(item["name"], item["parameters_digest"]) for item in checkpoints if item["sound"]]
    epochs = f"{len(metrics)} of {counted(run.configuration['epochs'], 'epoch')}"
    accuracy = f", {_accuracy_text(metrics[-1]).lower()}" if metrics else ""
    summary = f"{run.location}: {epochs}{accuracy}"
    details = "\ndigests\n" + facts(digests)
    return Report(document, "\n\n".join(parts), summary, details)


def _parent_text(run: Run) -> str:
    """Return the checkpoint that a run was started from."""
    assert run.parent is not None
    return f"{run.parent_checkpoint}{' with its optimizer' if run.parent['optimizer'] else ''}"


def _checkpoint_document(run: Run, name: CheckpointName, is_snapshot: bool) -> dict[str, Any]:
    try:
        checkpoint = load_checkpoint(run, name)
    except BadDataError as error:
        return {"name": str(name), "sound": False, "error": str(error)}
    return {
        "name": str(name),
        "sound": True,
        "epoch": name.epoch,
        "step": name.step,
        "parameters_digest": checkpoint.parameters_digest,
        "snapshot": is_snapshot,
    }


def _checkpoints_table(checkpoints: list[dict[str, Any]]) -> str:
    rows = [
        [
            entry["name"],
            "sound, snapshot" if entry["snapshot"] else "sound",
            entry["parameters_digest"][:SHORT_DIGEST],
        ]
        if entry["sound"]
        else [entry["name"], "DAMAGED", entry["error"]]
        for entry in checkpoints
    ]
    return table(["checkpoint", "state", "model"], rows, ("state", "model"), wrapped=("model",))


def _epochs_text(metrics: list[dict[str, Any]], epochs: int) -> str:
    if not metrics:
        return "No epoch is finished yet."
    lines = EpochTable(epochs, list(metrics[0]["evaluation"]))
    return "\n".join([lines.header, *map(lines.row, metrics)])


def train_report(result: "TrainResult") -> Report:
    """Report a finished training run; text and summary name the model of the best epoch."""
    run, best, epochs = result.run.location, result.best, len(result.metrics)
    chosen = result.metrics[best.epoch - 1 if best else -1] if epochs else None
    digest = chosen["parameters_digest"] if chosen else result.parameters_digest
    document = {
        "run": str(run),
        "parent": result.run.parent_checkpoint,
        "epochs": list(result.metrics),
        "parameters_digest": result.parameters_digest,
        "order_digest": result.order_digest,
        "best": str(best) if best else None,
        "best_parameters_digest": digest if best else None,
        "already_done": result.already_done,
        "stopped_early": result.stopped_early,
        "configuration": result.config.to_json(),
    }
    lines = [f"{run} is already trained."] if result.already_done else []
    if result.stopped_early:
        patience = counted(result.config.patience, "epoch")
        lines.append(f"Stopped early: no lower validation loss in {patience}.")
    summary = f"model {digest[:SHORT_DIGEST]} in {run}"
    if chosen:
        rank = f", the best of {epochs:,}" if best and epochs > 1 else ""
        average = average_text(1, result.config.average_shifts if chosen["evaluation"] else 0)
        average = f", {average}" if average else ""
        epoch = f"after epoch {chosen['epoch']}{rank}{average}"
        summary = f"{_accuracy_text(chosen)} {epoch}; {summary}"
    last = [("last model", result.parameters_digest)] if best else []
    details = facts([("model", digest), *last, ("order", result.order_digest)])
    return Report(document, "\n".join([*lines, fit(summary)]), summary, details)


def _accuracy_text(line: dict[str, Any]) -> str:
    """Return an epoch's accuracies, or the training accuracy if no split was evaluated."""
    shares = {name: percent(split["accuracy"]) for name, split in line["evaluation"].items()}
    if len(shares) < 2:
        [(name, share)] = shares.items() or [("training", percent(line["accuracy"]))]
        return f"{name.capitalize()} accuracy {share}"
    return "Accuracy " + ", ".join(f"{share} ({name})" for name, share in shares.items())
