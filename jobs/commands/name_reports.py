"""Reports of `pipeline promote`: the models that have names."""

from typing import Any

from jobs.commands.console import Report
from jobs.commands.tables import SHORT_DIGEST, facts, fit, table
from jobs.output import average_text, member_names, percent
from jobs.scoring.promote import PromoteResult
from storage.events import local_time
from storage.location import Location
from storage.models import Holder, ModelName
from storage.places import referenced


def promote_report(result: PromoteResult, models: Location) -> Report:
    """Report the model that has the name now, and the previous one."""
    document = {
        "name": result.name,
        "model": _holder_document(result.holder),
        "before": _holder_document(result.before),
        "already_done": result.already_done,
        "gates": [verdict.to_json() for verdict in result.verdicts],
    }
    lines = []
    if result.already_done:
        lines.append(f"{result.name} already names this model.")
    elif result.before is not None:
        lines.append(f"Before: {_holder_text(result.before, models)}")
    if result.holder is None:
        lines.append(f"No model is named {result.name} now.")
    else:
        lines.append(f"{result.name}: {_holder_text(result.holder, models)}")
    details = _holder_details(result.name, result.holder, models)
    return Report(document, "\n".join(map(fit, lines)), lines[-1], details)


def _holder_document(holder: Holder | None) -> dict[str, Any] | None:
    return None if holder is None else holder.to_json()


def _holder_text(holder: Holder | None, models: Location) -> str:
    if holder is None:
        return "none"
    accuracy = "" if holder.accuracy is None else f", accuracy {percent(holder.accuracy)}"
    run = referenced(holder.run, models)
    average = f", {text}" if (text := _average_text(holder, models)) else ""
    return f"model {holder.model_digest[:SHORT_DIGEST]} in {run}{average}{accuracy}"


def _average_text(holder: Holder, models: Location) -> str:
    runs = [referenced(held.run, models) for held in holder.runs]
    names = member_names(runs, holder.checkpoint)
    return average_text(holder.checkpoint.count(",") + 1, holder.average_shifts, names)


def _holder_details(name: str, holder: Holder | None, models: Location) -> str:
    """Return all recorded facts about a promoted model, with full digests."""
    if holder is None:
        return ""
    run, since = referenced(holder.run, models), local_time(holder.since)
    recorded = holder.to_json() | {"run": run, "since": since}
    if holder.runs:
        recorded["runs"] = ", ".join(referenced(held.run, models) for held in holder.runs)
    present = [(f"  {key}", value) for key, value in recorded.items() if value is not None]
    return f"\n{name}\n{facts(present)}"


def names_report(names: list[ModelName], models: str) -> Report:
    """Report every promoted name: its model, the time of promotion, and its history."""
    documents = [
        {"name": name.name, "model": _holder_document(name.holder), "events": list(name.events)}
        for name in names
    ]
    document = {"models": models, "names": documents}
    if not names:
        text = f"No model is promoted in {models}."
        return Report(document, text, text)
    header = ["name", "model", "checkpoint", "run", "since", "accuracy"]
    text = table(
        header,
        [_name_row(name) for name in names],
        left=header[:5],
        wrapped=("name", "run"),
        optional=("checkpoint",),
    )
    averages = [
        fit(f"{name.name}: {average}")
        for name in names
        if name.holder and (average := _average_text(name.holder, name.place))
    ]
    summary = f"Promoted in {models}: {', '.join(name.name for name in names)}"
    text = "\n\n".join(filter(None, [text, "\n".join(averages), summary]))
    details = "\n".join(_holder_details(name.name, name.holder, name.place) for name in names)
    return Report(document, text, summary, details)


def _name_row(name: ModelName) -> list[str]:
    holder = name.holder
    if holder is None:
        return [name.name, "none", "-", "-", "-", "-"]
    return [
        name.name,
        holder.model_digest[:SHORT_DIGEST],
        holder.checkpoint,
        name.run_place(holder),
        local_time(holder.since),
        "-" if holder.accuracy is None else percent(holder.accuracy),
    ]
