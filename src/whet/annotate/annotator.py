"""Labels for texts and tables: what a user holds in the hand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from whet.annotate.cache import AnswerCache
from whet.annotate.engine import Engine, recall
from whet.annotate.labelling import Abstain, Label, Outcome, label_rows
from whet.annotate.protocol import Backend, Conversation, Stop
from whet.annotate.task import Example, Task
from whet.corpus import check_texts, require_column
from whet.errors import WhetError
from whet.streams import RowStream, write_stream

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Progress = Callable[[str, int, int], None]


def _quiet(stage: str, done: int, total: int) -> None:
    del stage, done, total


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    thread = threading.Thread(target=_run_until_over, args=(loop, task))
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C in a notebook's cell
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    return task.result()


def _run_until_over(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(BaseException), contextlib.closing(loop):  # the task holds its error
        loop.run_until_complete(task)


@dataclass(frozen=True)
class Rows:
    """The rows of a table as a task sees them.

    Attributes
    ----------
    stream : RowStream
    task : Task
        With the examples that were drawn from the gold column, if it asks for any.
    text : str
        The column that ``{text}`` stands for.
    gold : str or None
        Column of gold labels.
    shown : frozenset of int
        Rows that are shown in the prompt as examples; they are not asked.

    Examples
    --------
    >>> task = Task("t", "Is it spam?", {"spam": "", "ham": ""})
    >>> rows = read_rows(RowStream({"text": ["WIN", "hi"]}), task)
    >>> list(rows.units(1))
    [['WIN'], ['hi']]
    """

    stream: RowStream
    task: Task
    text: str = "text"
    gold: str | None = None
    shown: frozenset[int] = frozenset()

    def texts(self) -> Iterator[str]:
        """Yield each row's text as the template makes it."""
        columns = {name: self.text if name == "text" else name for name in self.task.columns}
        for batch in self.stream.batches():
            values = {
                name: ["" if v is None else str(v) for v in batch.column(column).to_pylist()]
                for name, column in columns.items()
            }
            for i in range(batch.num_rows):
                yield self.task.render({name: said[i] for name, said in values.items()})

    def units(self, size: int) -> Iterator[list[str] | None]:
        """Yield the texts that are asked together, in order; None for a row of the prompt."""
        unit: list[str] = []
        for row, text in enumerate(self.texts()):
            if row in self.shown or len(unit) == size:
                if unit:
                    yield unit
                unit = []
            if row in self.shown:
                yield None
            else:
                unit.append(text)
        if unit:
            yield unit

    def gold_labels(self) -> Iterator[str | None]:
        """Yield each row's gold label as a string, None where it has none."""
        if self.gold is None:
            yield from (None for _ in range(self.stream.num_rows))
            return
        for batch in self.stream.batches():
            for value in batch.column(self.gold).to_pylist():
                missing = value is None or value == "" or value != value
                whole = isinstance(value, float) and value.is_integer()  # as pandas beside gaps
                yield None if missing else str(int(value) if whole else value)


def read_rows(
    stream: RowStream, task: Task, *, text: str = "text", gold: str | None = None, seed: int = 0
) -> Rows:
    """Check a table against a task, and draw the examples that the task wants from its gold.

    Raises
    ------
    WhetError
        If a column is missing, a gold label is no class, or a class has too few gold rows.
    """
    head = stream.schema.empty_table()
    for name in task.columns:
        flag = "--text" if name == "text" else "the task's template"
        require_column(head, text if name == "text" else name, flag, stream.name)
    rows = Rows(stream, task, text, gold)
    if gold is None:
        if task.gold_examples:
            raise WhetError(
                f"the task {task.name!r} draws {task.gold_examples} examples a class from gold "
                "labels: name their column with --gold"
            )
        return rows
    require_column(head, gold, "--gold", stream.name)
    whole = replace(rows, stream=stream.unlimited())  # with a limit, too, the same examples
    by_class = _rows_by_class(whole)
    if not any(by_class.values()):
        raise WhetError(f"the column {gold!r} of {stream.name} holds no gold label: drop --gold")
    if not task.gold_examples:
        return rows
    chosen: dict[int, str] = {}
    random = np.random.default_rng(seed)
    for name, members in by_class.items():
        if len(members) < task.gold_examples:
            raise WhetError(
                f"the class {name!r} has {len(members)} gold rows, and the task wants "
                f"{task.gold_examples} examples: label more rows, or lower gold_examples"
            )
        for row in random.choice(members, task.gold_examples, replace=False):
            chosen[int(row)] = name
    order = random.permutation(sorted(chosen)).tolist()
    found = {row: t for row, t in enumerate(whole.texts()) if row in chosen}
    examples = tuple(Example(found[row], chosen[row]) for row in order)
    texts = set(found.values())  # a copy of an example would find its answer in the prompt
    shown = frozenset(row for row, text in enumerate(rows.texts()) if text in texts)
    return replace(rows, task=replace(task, examples=task.examples + examples), shown=shown)


def _rows_by_class(rows: Rows) -> dict[str, list[int]]:
    """Return the gold rows of each class; raise where a gold label is no class."""
    by_class: dict[str, list[int]] = {name: [] for name in rows.task.classes}
    for row, label in enumerate(rows.gold_labels()):
        if label is None:
            continue
        if label not in by_class:
            raise WhetError(
                f"row {row} of {rows.stream.name} has the gold label {label!r}, which is no class "
                f"of the task {rows.task.name!r} ({', '.join(map(repr, by_class))}): use the same "
                "names"
            )
        by_class[label].append(row)
    return by_class


@dataclass
class Annotation:
    """Labels of texts, in their order.

    Attributes
    ----------
    outcomes : list of Label or Abstain
        What was found for each row.
    stopped : str or None
        Why the run ended before all rows were asked.

    Examples
    --------
    >>> Annotation([Label("spam", 0.9), Abstain("empty text")]).labels
    ['spam', None]
    """

    outcomes: list[Outcome] = field(default_factory=list)
    stopped: str | None = None

    @property
    def labels(self) -> list[str | None]:
        """Class names; None where the annotator abstained."""
        return [o.name if isinstance(o, Label) else None for o in self.outcomes]

    @property
    def probabilities(self) -> list[float | None]:
        """The annotator's probability of each label; None where unknown."""
        return [o.probability if isinstance(o, Label) else None for o in self.outcomes]

    @property
    def reasons(self) -> list[str | None]:
        """Why there is no label; None where there is one."""
        return [str(o) if isinstance(o, Abstain) else None for o in self.outcomes]


class Annotator:
    """Asks a model for labels: each answer is checked, kept, and never paid twice.

    Parameters
    ----------
    task : Task
    backend : Backend
        For example :class:`whet.annotate.openai.OpenAIBackend`.
    cache : AnswerCache, optional
        Default: in memory, for this object only.
    samples : int
        Answers a row, at least 1; with more, the label is the majority's and its probability the
        share that agree.
    temperature : float, optional
        Default: 0, or 1 with several samples.
    rows_per_request : int
        Rows that share a request, at least 1. More is cheaper, but rows can influence one another.
    concurrency : int
        Requests in flight, at least 1.

    Attributes
    ----------
    engine : Engine

    Examples
    --------
    >>> from whet.annotate.protocol import Answer
    >>> class Keyword:
    ...     route, at_once = {"backend": "keyword"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer("spam" if "WIN" in r.text else "ham") for r in requests]
    ...     async def close(self): ...
    >>> task = Task("spam", "Is the message spam?", {"spam": "", "ham": ""})
    >>> Annotator(task, Keyword()).annotate(["WIN NOW", "see you at 8"]).labels
    ['spam', 'ham']
    """

    def __init__(
        self,
        task: Task,
        backend: Backend,
        *,
        cache: AnswerCache | None = None,
        samples: int = 1,
        temperature: float | None = None,
        rows_per_request: int = 1,
        concurrency: int = 16,
    ) -> None:
        for name, value in (
            ("samples", samples),
            ("rows_per_request", rows_per_request),
            ("concurrency", concurrency),
        ):
            if value < 1:
                raise WhetError(f"{name} = {value}, but at least 1 is needed: raise it")
            if value > 1 and name != "concurrency" and backend.at_once > 1:
                raise WhetError(
                    f"{name} = {value} is for servers, and this back end is "
                    f"{backend.route.get('backend')}: leave it out"
                )
        if temperature is not None and not 0 <= temperature <= 2:
            raise WhetError(f"temperature = {temperature:g} is not within 0 to 2: correct it")
        if samples > 1 and temperature == 0:
            raise WhetError(
                f"samples = {samples} with temperature 0 gives the same answer each time: raise "
                "the temperature"
            )
        self.task = task
        self.samples, self.rows_per_request = samples, rows_per_request
        self.temperature = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
        self.engine = Engine(backend, cache or AnswerCache(None), concurrency)

    def annotate(self, texts: Sequence[str], progress: Progress = _quiet) -> Annotation:
        """Label texts.

        Parameters
        ----------
        texts : sequence of str
        progress : callable
            Told (stage, done, total).

        Raises
        ------
        WhetError
            If the server cannot be used; a reached budget only ends the run early.
        """
        rows = rows_of(self.task, texts)
        stop = self.buy(rows, progress)
        return Annotation(list(self.outcomes(rows, stop)), None if stop is None else stop.reason)

    def conversation(self, task: Task, unit: list[str] | None) -> Conversation[list[Outcome]]:
        """Return the conversation about the texts of a unit; see :meth:`Rows.units`."""
        if unit is None:
            return _shown()
        return label_rows(task, unit, samples=self.samples, temperature=self.temperature)

    def buy(self, rows: Rows, progress: Progress = _quiet) -> Stop | None:
        """Ask for all rows that the cache cannot answer; return why it ended early, if it did.

        Raises
        ------
        WhetError
            If the user has something to mend; what was answered is kept.
        """
        return buy(self, rows, progress)

    def outcomes(self, rows: Rows, stop: Stop | None = None) -> Iterator[Outcome]:
        """Yield what the cache says of each row, in order."""
        for unit in recalled(self, rows, stop):
            yield from unit


def _shown() -> Conversation[list[Outcome]]:
    yield from ()
    return [Abstain("example")]


class Asker(Protocol[T_co]):
    """What has a conversation about each unit of rows: an annotator, a self-refiner.

    Examples
    --------
    >>> class Echo:
    ...     route, at_once = {"backend": "echo"}, 1
    >>> asker: Asker = Annotator(Task("t", "Is it spam?", {"spam": "", "ham": ""}), Echo())
    >>> asker.rows_per_request
    1
    """

    engine: Engine
    rows_per_request: int

    def conversation(self, task: Task, unit: list[str] | None) -> Conversation[T_co]:
        """Return the conversation about a unit; see :meth:`Rows.units`."""
        ...


def rows_of(task: Task, texts: Sequence[str]) -> Rows:
    """Return texts that are rendered already as the rows of a task."""
    stream = RowStream({"text": pa.array(check_texts(texts), pa.string())})
    return read_rows(stream, replace(task, template="{text}"))


def talks(asker: Asker[T], rows: Rows) -> Iterator[Conversation[T]]:
    """Yield the conversations about all rows, in order."""
    return (asker.conversation(rows.task, unit) for unit in rows.units(asker.rows_per_request))


def recalled(asker: Asker[T], rows: Rows, stop: Stop | None) -> Iterator[T]:
    """Yield what the cache says in each conversation, in order."""
    why, engine = "" if stop is None else stop.reason, asker.engine
    for talk in talks(asker, rows):
        yield recall(talk, engine.cache, engine.backend.route, why)


def buy(asker: Asker[Any], rows: Rows, progress: Progress) -> Stop | None:
    """Run all conversations and turn a stop that the user must mend into an error."""
    total = rows.stream.num_rows

    def done(count: int) -> None:
        progress("annotate", min(count * asker.rows_per_request, total), total)

    run_async(asker.engine.buy(talks(asker, rows), done))
    stop = asker.engine.stopped
    if stop is not None and stop.fatal:
        raise WhetError(stop.reason)
    return stop


@dataclass(frozen=True)
class Columns:
    """Names of the columns that annotating adds, all made from one name.

    Examples
    --------
    >>> Columns("pseudo_label").probability, Columns("gpt").probability
    ('pseudo_prob', 'gpt_prob')
    """

    label: str

    @property
    def stem(self) -> str:
        """What the names have in common."""
        return self.label.removesuffix("_label") or self.label

    @property
    def probability(self) -> str:
        """Column of probabilities."""
        return f"{self.stem}_prob"

    @property
    def abstain(self) -> str:
        """Column of reasons for having no label."""
        return f"{self.stem}_abstain"

    @property
    def explanation(self) -> str:
        """Column of what the model wrote first."""
        return f"{self.stem}_explanation"

    def values(self, outcome: Outcome) -> dict[str, Any]:
        """Return the values of the columns for one row."""
        if isinstance(outcome, Abstain):
            return {self.abstain: str(outcome)}
        return {
            self.label: outcome.name,
            self.probability: outcome.probability,
            self.explanation: outcome.explanation,
        }

    def fields(self, task: Task) -> list[pa.Field]:
        """Return the added columns with their types."""
        names = [(self.label, pa.string()), (self.probability, pa.float64())]
        names.append((self.abstain, pa.string()))
        if task.explain:
            names.append((self.explanation, pa.string()))
        return [pa.field(name, kind) for name, kind in names]


def extended(stream: RowStream, added: Sequence[pa.Field]) -> pa.Schema:
    """Return a stream's schema with columns added.

    Raises
    ------
    WhetError
        If the table has one of them already.
    """
    for new in added:
        if new.name in stream.schema.names:
            raise WhetError(
                f"{stream.name} already has the column {new.name!r}: name another with --column"
            )
    schema = stream.schema
    for new in added:
        schema = schema.append(new)
    return schema


def write_rows(
    out: Path,
    stream: RowStream,
    added: Sequence[pa.Field],
    values: Iterator[Mapping[str, Any]],
    finish: Callable[[str], None] = lambda digest: None,
) -> None:
    """Write all input columns and the added ones, a batch at a time.

    Parameters
    ----------
    out : Path
    stream : RowStream
    added : sequence of pyarrow.Field
    values : iterator of dict
        The added columns of each row, in order.
    finish : callable
        Given the SHA-256 of the file when all is written, before it gets its name.
    """
    schema = extended(stream, added)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream.batches():
            rows = [next(values) for _ in range(batch.num_rows)]
            columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in added]
            yield pa.record_batch([*batch.columns, *columns], schema=schema)

    write_stream(out, schema, batches(), finish)
