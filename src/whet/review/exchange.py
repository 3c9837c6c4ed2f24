"""The sample for Label Studio and Argilla, and their answers back.

Layouts: tasks of Label Studio 1.x and its exports JSON and JSON-MIN; records of Argilla 2.x as
``Dataset.records.from_json`` reads them and ``Dataset.records.to_list(flatten=True)`` gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from whet.errors import WhetError, did_you_mean
from whet.review.answers import Event
from whet.review.session import Item, Session
from whet.store import write_atomic

PROGRAMS = ("label-studio", "argilla")
#: Name of the question, and of the annotator's label as a suggestion.
_QUESTION, _AGENT = "label", "pseudo-label"
#: What Label Studio takes for the name of a field and replaces, and what XML cannot hold.
_UNFIT = re.compile(r"\$[A-Za-z0-9_\[\].{}]|[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def export_items(session: Session, program: str) -> dict[str, Path]:
    """Write the rows of a session for another program, beside the session.

    Parameters
    ----------
    session : Session
        Its annotator's labels are written as predictions or suggestions if it shows them.
    program : {"label-studio", "argilla"}

    Returns
    -------
    dict of str to Path
        ``tasks`` and ``labelling interface`` (XML to paste into the project's settings), or
        ``records``.

    Raises
    ------
    WhetError
        If the program is another, or Label Studio could not show a class as it is.
    """
    if program not in PROGRAMS:
        raise WhetError(f"--export {program!r}{did_you_mean(program, PROGRAMS)}")
    stem = session.path.name.removesuffix(".label.sqlite")
    items = [session.item(sampled.row) for sampled in session.items]
    if program == "argilla":
        path = session.path.with_name(f"{stem}.argilla.json")
        _write(path, json.dumps([_record(session, item) for item in items], ensure_ascii=False))
        return {"records": path}
    unfit = next((name for name in session.classes if _UNFIT.search(name)), None)
    if unfit is not None:
        raise WhetError(
            f"Label Studio cannot show the class {unfit!r}: it replaces a dollar sign and the word "
            "after it, and takes no control characters; rename the class, or label without --export"
        )
    path = session.path.with_name(f"{stem}.label-studio.json")
    interface = path.with_suffix(".xml")
    _write(interface, _interface(session, list(items[0].shown)))
    _write(path, json.dumps([_task(session, item) for item in items], ensure_ascii=False))
    return {"tasks": path, "labelling interface": interface}


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode() + b"\n"))


def _suggested(session: Session, item: Item) -> str | None:
    return item.pseudo if session.show_pseudo else None


def _record(session: Session, item: Item) -> dict[str, Any]:
    label = _suggested(session, item)
    suggestion = {"value": label, "score": None, "agent": _AGENT}
    return {
        "id": str(item.row),
        "fields": item.shown,
        "metadata": {},
        "suggestions": {} if label is None else {_QUESTION: suggestion},
        "responses": {},
        "vectors": {},
    }


def _task(session: Session, item: Item) -> dict[str, Any]:
    task: dict[str, Any] = {"data": {"row": item.row, **item.shown}}
    label = _suggested(session, item)
    if label is not None:
        result = {
            "from_name": _QUESTION,
            "to_name": next(iter(item.shown)),
            "type": "choices",
            "value": {"choices": [label]},
        }
        task["predictions"] = [{"model_version": _AGENT, "result": [result]}]
    return task


def _interface(session: Session, names: list[str]) -> str:
    """Return the labelling interface of Label Studio: texts, and one choice."""
    texts = [
        f'  <Header value={quoteattr(name)}/>\n  <Text name="{name}" value="${name}"/>'
        for name in names
    ]
    choices = [f"    <Choice value={quoteattr(name)}/>" for name in session.classes]
    opened = f'  <Choices name="{_QUESTION}" toName="{names[0]}" choice="single" showInline="true">'
    return "\n".join(["<View>", *texts, opened, *choices, "  </Choices>", "</View>"])


def import_answers(session: Session, file: Path) -> int:
    """Read the answers of a file of Label Studio or Argilla into a session, all or none.

    Parameters
    ----------
    session : Session
    file : Path
        JSON, or a JSON object a line. Who answered keeps the number or id that it has there.

    Returns
    -------
    int
        Answers read; those that the session had already are not stored again.

    Raises
    ------
    WhetError
        If the file cannot be read, or an answer is of an unknown row, another text or an unknown
        class, or given twice.
    """
    events: dict[tuple[str, int], Event] = {}
    for number, entry in enumerate(_entries(file), start=1):
        where = f"entry {number} of {file}"
        try:
            found = _events(entry)
            if found:
                _check_shown(session, found[0].row, entry.get("data", entry))
            for event in found:
                if (event.who, event.row) in events:
                    raise WhetError(
                        f"{event.who} answered row {event.row} twice; keep one of the two"
                    )
                events[event.who, event.row] = session.check(event)
        except WhetError as error:
            raise WhetError(f"{where}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WhetError(
                f"{where} is laid out otherwise ({type(error).__name__}: {error}): export JSON "
                "from Label Studio, or records.to_list(flatten=True) from Argilla"
            ) from error
    if not events:
        raise WhetError(f"{file} holds no answers: label there first, then export again")
    session.add(list(events.values()))
    return len(events)


def _entries(file: Path) -> list[Any]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if text.lstrip().startswith("["):
            entries = json.loads(text)
        else:
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise WhetError(f"{file} cannot be read ({error.strerror}): name another file") from error
    except (ValueError, RecursionError) as error:
        raise WhetError(f"{file} is not valid JSON ({error}): export it as JSON") from error
    if not isinstance(entries, list) or not entries:
        raise WhetError(f"{file} has no entries: export it again")
    return entries


def _check_shown(session: Session, row: int, entry: Mapping[str, Any]) -> None:
    """Refuse an answer to another text: row numbers alone fit any table, and any draw of sides."""
    shown = session.item(row).shown
    if shown != {name: entry.get(name) for name in shown}:
        raise WhetError(
            f"row {row} has another text there than in this session: import what was exported "
            "from here"
        )


def _events(entry: dict[str, Any]) -> list[Event]:
    """Return the answers of one entry of either program."""
    if "annotations" in entry:
        return list(_of_task(entry))
    if "annotation_id" in entry:
        return list(_of_minimal_entry(entry))
    if f"{_QUESTION}.responses" in entry:
        return list(_of_record(entry))
    if "responses" in entry:
        raise WhetError(
            "records.to_json of Argilla does not say which responses are drafts or discarded: "
            "write records.to_list(flatten=True) as JSON instead"
        )
    if "data" not in entry and "_server_id" not in entry:  # a task or record without an answer
        raise WhetError("this is neither a task nor a record: name an export")
    return []


def _of_task(task: dict[str, Any]) -> Iterator[Event]:
    """Yield the annotations of a task in Label Studio's JSON."""
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):  # skipped there
            continue
        chosen = [
            choice
            for result in annotation["result"]
            if result.get("from_name") == _QUESTION
            for choice in result["value"]["choices"]
        ]
        who = annotation.get("completed_by")
        if isinstance(who, dict):  # in some exports; the number is what all of them have
            who = who["id"]
        yield _annotation(task["data"]["row"], who, chosen, annotation.get("lead_time"))


def _of_minimal_entry(entry: dict[str, Any]) -> Iterator[Event]:
    """Yield the annotation of an entry in Label Studio's JSON-MIN, which has none that was skipped.

    One choice is a string, several are a list or an object; a task without annotations has nulls.
    """
    if entry["annotation_id"] is None:
        return
    chosen = entry.get(_QUESTION, [])
    if isinstance(chosen, dict):
        chosen = chosen["choices"]
    if isinstance(chosen, str):
        chosen = [chosen]
    yield _annotation(entry["row"], entry["annotator"], chosen, entry.get("lead_time"))


def _annotation(row: Any, who: Any, chosen: list[Any], seconds: Any) -> Event:  # noqa: ANN401
    """Return an annotation of Label Studio; one without a choice is unsure."""
    if len(chosen) > 1:
        raise WhetError(f"row {row} has {len(chosen)} choices: leave one")
    value = str(chosen[0]) if chosen else None
    took = max(float(seconds or 0.0), 0.0)
    return Event(f"label-studio {who or ''}", int(row), "answer", value, took, "")


def _of_record(record: dict[str, Any]) -> Iterator[Event]:
    """Yield the submitted responses of a record of Argilla; drafts and discarded ones are none."""
    named = ("responses", "responses.users", "responses.status")
    columns = [record[f"{_QUESTION}.{name}"] or [] for name in named]
    for value, who, status in zip(*columns, strict=True):
        if status == "submitted" and value is not None:
            yield Event(f"argilla {who}", int(record["id"]), "answer", str(value), 0.0, "")
