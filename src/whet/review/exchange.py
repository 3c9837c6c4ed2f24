"""The sample for Label Studio and Argilla, and their answers back.

Layouts: JSON tasks and JSON export of Label Studio 1.x; records of Argilla 2.x as
``Dataset.records.to_json`` writes and ``from_json`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
        If the program is another.
    """
    if program not in PROGRAMS:
        raise WhetError(f"--export {program!r}{did_you_mean(program, PROGRAMS)}")
    stem = session.path.name.removesuffix(".label.sqlite")
    items = [session.item(sampled.row) for sampled in session.items]
    if program == "argilla":
        path = session.path.with_name(f"{stem}.argilla.json")
        _write(path, json.dumps([_record(session, item) for item in items], ensure_ascii=False))
        return {"records": path}
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
    return {
        "id": str(item.row),
        "fields": item.shown,
        "metadata": {},
        "suggestions": {}
        if label is None
        else {_QUESTION: {"value": label, "score": None, "agent": _AGENT}},
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
        line for name in names for line in (f"  <Header value={quoteattr(name)}/>", _text_tag(name))
    ]
    choices = [f"    <Choice value={quoteattr(name)}/>" for name in session.classes]
    opened = f'  <Choices name="{_QUESTION}" toName="{names[0]}" choice="single" showInline="true">'
    return "\n".join(["<View>", *texts, opened, *choices, "  </Choices>", "</View>"])


def _text_tag(name: str) -> str:
    return f'  <Text name="{name}" value="${name}"/>'


def import_answers(session: Session, file: Path) -> int:
    """Read the answers of a file of Label Studio or Argilla into a session, all or none.

    Parameters
    ----------
    session : Session
    file : Path
        JSON, or a JSON object a line. Who answered keeps the name or number that it has there.

    Returns
    -------
    int
        Answers read; those that the session had already are not stored again.

    Raises
    ------
    WhetError
        If the file cannot be read, or an answer is of an unknown row or class, or given twice.
    """
    events: dict[tuple[str, int], Event] = {}
    for number, entry in enumerate(_entries(file), start=1):
        where = f"entry {number} of {file}"
        try:
            found = list(_events(entry, where))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WhetError):
                raise
            raise WhetError(
                f"{where} is laid out otherwise ({type(error).__name__}: {error}): export JSON "
                "from Label Studio, or records.to_json from Argilla"
            ) from error
        for event in found:
            if (event.who, event.row) in events:
                raise WhetError(
                    f"{where}: {event.who} answered row {event.row} twice; keep one of the two"
                )
            try:
                session.check(event)
            except WhetError as error:
                raise WhetError(f"{where}: {error}") from error
            events[event.who, event.row] = event
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
        raise WhetError(f"{file} is not valid JSON ({error}): export it again") from error
    if not isinstance(entries, list) or not entries:
        raise WhetError(f"{file} has no entries: export it again")
    return entries


def _events(entry: Any, where: str) -> Iterator[Event]:  # noqa: ANN401
    """Yield the answers of one entry of either program."""
    if "annotations" in entry:
        row = int(entry["data"]["row"])
        for annotation in entry["annotations"]:
            if not annotation.get("was_cancelled"):  # skipped there
                yield _annotation(annotation, row, where)
    elif "responses" in entry:
        for response in entry["responses"].get(_QUESTION, []):
            # Drafts and discarded responses are no answers, and have a status that says so.
            submitted = response.get("status") in (None, "submitted")
            if submitted and response["value"] is not None:
                who = f"argilla {response['user_id']}"
                yield Event(who, int(entry["id"]), "answer", str(response["value"]), 0.0, "")
    elif "data" not in entry:  # a task of Label Studio that nobody has annotated
        raise WhetError(f"{where} has neither annotations nor responses: name an export")


def _annotation(annotation: dict[str, Any], row: int, where: str) -> Event:
    chosen = [
        choice
        for result in annotation["result"]
        if result.get("from_name") == _QUESTION
        for choice in result["value"]["choices"]
    ]
    if len(chosen) > 1:
        raise WhetError(f"{where} has {len(chosen)} choices for row {row}: leave one")
    by = annotation.get("completed_by")
    who = by.get("email") or by.get("id") if isinstance(by, dict) else by
    value = str(chosen[0]) if chosen else None
    seconds = max(float(annotation.get("lead_time") or 0.0), 0.0)
    return Event(f"label-studio {who or ''}", row, "answer", value, seconds, "")
