"""Gold labels: which rows people are asked for, what their labels say, and the table with them.

A random sample in proportion to the annotator's labels serves estimates and training. Rows that
were picked since a refinement doubts them are no random sample: their labels stand in a column of
their own and enter no estimate.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.classify.inputs import warn_about_variants
from whet.classify.labels import MISSING, Codes, Label, clean_labels, encode, find_classes
from whet.corpus import REFINED_COLUMNS, require_column, text_column
from whet.errors import WhetError, did_you_mean
from whet.review.answers import Sampled
from whet.review.panel import estimates
from whet.review.sample import draw
from whet.review.session import Answered, Session, outcome_counts
from whet.store import read_json
from whet.streams import write_stream
from whet.tables import check_output, read_table

#: The columns of a refined table by which rows are picked: the highest, and the lowest, first.
PICKS = {"disagree": "suspicion", "unsure": "refined_prob"}
STRATEGIES = ("random", *PICKS)
#: Rows of a sample unless told otherwise.
N = 50
#: What is added to the input: labels of the random sample, rows of its stratum that a label stands
#: for, labels of rows that were picked, notes.
GOLD, WEIGHT, CHECKED, NOTE = "gold", "gold_weight", "checked", "gold_note"


def open_labels(
    source: object,
    *,
    out: Path,
    text: str | None = None,
    pseudo: str | None = None,
    classes: Sequence[str] = (),
    n: int = N,
    seed: int = 0,
    show_pseudo: bool = False,
    strategy: str | None = None,
) -> Session:
    """Return the session of people who label rows of a table; one that exists goes on.

    Parameters
    ----------
    source : path or table
        See :func:`whet.tables.read_table`; with a strategy other than ``random`` a run folder or
        its ``refined.parquet``.
    out : Path
        Table to write; the answers lie beside it.
    text : str, optional
        Column of texts; default for a run folder: that of the run.
    pseudo : str, optional
        Column of an annotator's labels: the sample is proportional to them; default for a run
        folder: that of the run.
    classes : sequence of str
        In the order of the keys; default: those of ``pseudo``.
    n : int
        Rows of the sample, or with the other strategies all rows that the session picks; of all
        rows if there are fewer. A session that had fewer gets more.
    seed : int
    show_pseudo : bool
        Let people see the annotator's label, which they then tend to repeat.
    strategy : {"random", "disagree", "unsure"}, optional
        ``disagree``: the n rows with the highest ``suspicion`` that have no label yet; ``unsure``:
        those with the lowest ``refined_prob``. Default: ``random``, but a refined table needs a
        choice.

    Warns
    -----
    WhetWarning
        If two classes differ only in case or spaces.

    Raises
    ------
    WhetError
        If the table, its columns or the classes cannot be used, or ``out`` belongs to another
        session.
    """
    if strategy is not None and strategy not in STRATEGIES:
        raise WhetError(f"strategy = {strategy!r}{did_you_mean(strategy, STRATEGIES)}")
    if n < 1:
        raise WhetError(f"n = {n}: label at least one row")
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and (path / "refined.parquet").is_file():
        path = path / "refined.parquet"
    if path is not None and out.exists() and path.exists() and out.samefile(path):
        raise WhetError(f"--out {out} is the input, which whet never changes: choose another file")
    name = "the table" if path is None else str(path)
    table = read_table(source if path is None else path)
    if strategy is None and _is_refined(table):
        raise WhetError(
            f"{name} is refined: choose --strategy disagree (the annotator's labels that are most "
            "doubtful) or --strategy unsure (the refined labels that are least sure)"
        )
    if path is not None and path.name == "refined.parquet":
        text, pseudo = _columns_of_run(path, table, text, pseudo)
    if text is None:
        raise WhetError(f"the column of texts of {name} is not known: name it with --text")
    rows = _rows(table, name, text, pseudo, classes, strategy or "random")
    warn_about_variants(rows.classes)
    check_output(out, _without_refined(table, pseudo))
    return Session(Labelling(rows, out, n, seed, show_pseudo, strategy or "random"))


def _columns_of_run(
    path: Path, table: pa.Table, text: str | None, pseudo: str | None
) -> tuple[str | None, str | None]:
    """Return the columns of texts and pseudo-labels: as given, or else as the run has them."""
    file = path.parent / "run.json"
    settings = read_json(file).get("settings", {}) if file.is_file() else {}
    if pseudo is None and "pseudo" in settings:
        pseudo = str(settings["pseudo"])
        if pseudo not in table.column_names:  # those of several annotators
            pseudo = _annotator_column(table)
    return text or settings.get("text"), pseudo


def _is_refined(table: pa.Table) -> bool:
    return {"suspicion", "refined_label"} <= set(table.column_names)


def _annotator_column(table: pa.Table) -> str:
    """Return the column that ``whet refine`` wrote the annotator's labels to."""
    return "annotator_label" if "annotator_label" in table.column_names else "pseudo_label"


@dataclass(frozen=True)
class Rows:
    """A table whose texts, pseudo-labels and classes are known.

    Attributes
    ----------
    table : pyarrow.Table
    name : str
        Of the input, for messages.
    text, pseudo : str, str or None
        Columns.
    texts : list of str, length N
    codes : int64 array of shape (N,)
        Pseudo-label of each row as its place in ``classes``, -1 where there is none.
    classes : list of str, int or bool
        As the column of pseudo-labels has them.

    Examples
    --------
    >>> table = pa.table({"t": ["a", "b"], "llm": [1, 0]})
    >>> _rows(table, "the table", "t", "llm", (), "random").codes.tolist()
    [1, 0]
    """

    table: pa.Table
    name: str
    text: str
    pseudo: str | None
    texts: list[str]
    codes: Codes
    classes: list[Label]


def _rows(
    table: pa.Table,
    name: str,
    text: str,
    pseudo: str | None,
    classes: Sequence[str],
    strategy: str,
) -> Rows:
    """Check a table and its columns."""
    require_column(table, text, "--text", name)
    texts = text_column(table, text, name)
    if strategy in PICKS:
        if PICKS[strategy] not in table.column_names:
            raise WhetError(
                f"{name} has no column {PICKS[strategy]!r}, by which --strategy {strategy} picks "
                "rows: give the run folder that whet refine wrote, or its refined.parquet"
            )
        _doubt(table, strategy)
    else:
        taken = next((c for c in (GOLD, WEIGHT, CHECKED, NOTE) if c in table.column_names), None)
        if taken is not None:
            raise WhetError(
                f"{name} already has the column {taken!r}, which whet label adds: rename it, or "
                "give the table without it"
            )
    labels: list[Label | None] = [None] * len(texts)
    if pseudo is not None:
        require_column(table, pseudo, "--pseudo", name)
        if pseudo == text:
            raise WhetError(f"--text and --pseudo are both {text!r}: name two columns")
        labels = clean_labels(table[pseudo].to_pylist(), "pseudo-label")
    known = _classes(labels, classes, name, pseudo)
    codes = _encode(labels, known, name)
    return Rows(table, name, text, pseudo, texts, codes, known)


def _doubt(table: pa.Table, strategy: str) -> NDArray[np.float64]:
    """Return how doubtful each row is: from 0, not at all, also where the column is empty."""
    column = PICKS[strategy]
    try:
        values = np.array(table[column].to_pylist(), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WhetError(
            f"the column {column!r} holds no numbers ({error}): give what whet refine wrote"
        ) from error
    return np.nan_to_num(1 - values if strategy == "unsure" else values)


def _classes(
    labels: list[Label | None], named: Sequence[str], name: str, pseudo: str | None
) -> list[Label]:
    """Return the classes in the order of the keys, of the kind that the pseudo-labels are."""
    if not named:
        if pseudo is None:
            raise WhetError(
                f"the classes of {name} are not known: name them with --classes a,b,c, or a column "
                "of an annotator's labels with --pseudo"
            )
        return find_classes(labels)
    given = [label.strip() for label in named]
    for label in given:
        if not label:
            raise WhetError("--classes has an empty name: write --classes spam,ham")
        if given.count(label) > 1:
            raise WhetError(f"--classes names {label!r} twice: name each class once")
    if len(given) < 2:
        raise WhetError(f"--classes names only {given[0]!r}: at least two classes are needed")
    known = {str(label): label for label in labels if label is not None}
    if known and not any(isinstance(label, str) for label in known.values()):
        odd = next((label for label in given if label not in known and not _whole(label)), None)
        if odd is not None:
            raise WhetError(
                f"the class {odd!r} is text and the labels in {pseudo!r} are numbers: use one kind"
            )
        return [known.get(label, int(label) if _whole(label) else label) for label in given]
    return [*given]


def _whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _encode(labels: list[Label | None], classes: list[Label], name: str) -> Codes:
    known = {None, *classes}
    stray = [label for label in labels if label not in known]
    if stray:
        raise WhetError(
            f"{len(stray):,} rows of {name} have a pseudo-label that --classes does not name, such "
            f"as {stray[0]!r}: name it too, or leave these cells empty"
        )
    return encode(labels, classes, "pseudo-label")


def _without_refined(table: pa.Table, pseudo: str | None) -> pa.Table:
    """Return a table without the columns of ``whet refine``, which would refuse them."""
    if not _is_refined(table):
        return table
    annotator = _annotator_column(table)
    added = {*REFINED_COLUMNS, "annotator_label"} - {"pseudo_label", "annotator_label"}
    if annotator != pseudo:
        added.add(annotator)
    return table.drop_columns([name for name in table.column_names if name in added])


class Labelling:
    """The work of labelling rows with classes; see :func:`open_labels`.

    Parameters
    ----------
    rows : Rows
    out : Path
    n, seed, show_pseudo, strategy
        See :func:`open_labels`.

    Examples
    --------
    >>> table = pa.table({"t": ["a", "b", "c"], "llm": [1, 0, 1]})
    >>> work = Labelling(_rows(table, "the table", "t", "llm", (), "random"), Path("gold.csv"), 2)
    >>> work.classes, len(work.choose([]))
    (['0', '1'], 2)
    """

    kind = "label"
    seconds: float | None = None
    criterion: str | None = None

    def __init__(
        self,
        rows: Rows,
        out: Path,
        n: int = N,
        seed: int = 0,
        show_pseudo: bool = False,
        strategy: str = "random",
    ) -> None:
        self.rows, self.out, self.n, self.seed = rows, out, n, seed
        self.show_pseudo = show_pseudo and rows.pseudo is not None
        self.strategy = strategy
        self.title = Path(rows.name).name
        self.classes = [str(label) for label in rows.classes]

    def facts(self) -> dict[str, str]:
        """Return the classes, the seed, and hashes of the texts and the pseudo-labels.

        Of texts and not of the file, so that what ``whet refine`` made of a table continues its
        session: with its doubtful rows even if the sample knew of no pseudo-labels.
        """
        texts = (text.encode("utf-8", "surrogatepass") for text in self.rows.texts)
        facts = {
            "kind": self.kind,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "texts": _hash(texts),
            "seed": str(self.seed),
        }
        if self.strategy == "random":
            facts["pseudo-labels"] = _hash([self.rows.codes.tobytes()])
        return facts

    # --- which rows -------------------------------------------------------------------------------

    def choose(self, known: list[Sampled]) -> list[Sampled]:
        """Return the rows of the session: those that it has, then as many as ``n`` asks for."""
        if self.strategy in PICKS:
            return [*known, *self._doubtful(known)]
        n = min(max(self.n, sum(item.random for item in known)), len(self.rows.texts))
        drawn = draw(self.rows.codes, n, self.seed)
        kept = {item.row for item in known}
        fresh = [row for row in drawn.tolist() if row not in kept]
        # Their order would else tell the annotator's label, which comes in turns.
        np.random.default_rng([self.seed, len(known)]).shuffle(fresh)
        sample = set(drawn.tolist()) | {item.row for item in known if item.random}
        # A row that was picked before it was drawn is as random as any other.
        before = [Sampled(item.row, random=item.row in sample) for item in known]
        return [*before, *(Sampled(row, random=True) for row in fresh)]

    def _doubtful(self, known: list[Sampled]) -> list[Sampled]:
        """Return the most doubtful rows that lack a label, the most doubtful first."""
        doubt = _doubt(self.rows.table, self.strategy)
        labelled = {item.row for item in known}
        for name in (GOLD, CHECKED):
            if name in self.rows.table.column_names:
                values = self.rows.table[name].to_pylist()
                labelled |= {row for row, value in enumerate(values) if value not in (None, "")}
        wanted = self.n - sum(not item.random for item in known)
        order = np.argsort(-doubt, kind="stable").tolist()
        picked = [row for row in order if doubt[row] > 0 and row not in labelled]
        return [Sampled(row, random=False) for row in picked[: max(wanted, 0)]]

    # --- what is shown ----------------------------------------------------------------------------

    def shown(self, row: int) -> dict[str, str]:
        """Return the text."""
        return {"text": self.rows.texts[row]}

    def pseudo(self, row: int) -> str | None:
        """Return the annotator's label."""
        code = self.rows.codes[row]
        return None if code == MISSING else self.classes[code]

    def panel(self, answered: Sequence[Answered], *, live: bool) -> dict[str, Any]:
        """Return what the labels of the random sample say.

        Returns
        -------
        dict
            Rows without a label, which no estimate counts: ``unsure`` (nobody gave a class) and
            ``unsettled``; ``checked``, labels of picked rows; and what
            :func:`whet.review.panel.estimates` returns. ``live``, while labels of the annotator
            are hidden, only every fifth label moves these: else each would tell whether it is the
            annotator's.
        """
        random = [row for row in answered if row.random]
        counts = outcome_counts(random)
        labelled = [row for row in random if row.label is not None]
        if live and not self.show_pseudo:
            labelled = labelled[: len(labelled) // 5 * 5]
        gold = np.array([self.classes.index(str(row.label)) for row in labelled], dtype=np.int64)
        rows = np.array([row.row for row in labelled], dtype=np.int64)
        codes = self.rows.codes if self.rows.pseudo is not None else None
        return {
            "unsure": counts["unsure"],
            "unsettled": counts["unsettled"],
            "checked": sum(row.label is not None for row in answered if not row.random),
            **estimates(self.classes, gold, rows, codes),
        }

    # --- what is written --------------------------------------------------------------------------

    def write(self, answered: Sequence[Answered], finish: Callable[[str], None]) -> None:
        """Write the input with the columns ``gold``, ``gold_weight``, ``checked``, ``gold_note``.

        What a refined input holds in these columns stays, except for rows that are labelled here.
        """
        table = _without_refined(self.rows.table, self.rows.pseudo)
        table = table.replace_schema_metadata(None)
        labels = {row.row: row for row in answered}
        kind = pa.array(self.rows.classes).type
        known = dict(zip(self.classes, self.rows.classes, strict=True))
        gold = {r: known[a.label] for r, a in labels.items() if a.random and a.label}
        checked = {r: known[a.label] for r, a in labels.items() if not a.random and a.label}
        notes = {row: _note(found) for row, found in labels.items() if found.notes}
        weights = self._weights(np.array(sorted(gold), dtype=np.int64))
        fresh = set(labels)
        for name, values, type_ in (
            (GOLD, gold, kind),
            (WEIGHT, weights, pa.float64()),
            (CHECKED, checked, kind),
            (NOTE, notes, pa.string()),
        ):
            table = _overlaid(table, name, values, fresh, type_)
        write_stream(self.out, table.schema, table.to_batches(), finish)

    def _weights(self, rows: NDArray[np.int64]) -> dict[int, float]:
        """Return the rows of the input that each labelled row stands for: those of its stratum."""
        size = np.bincount(self.rows.codes + 1)
        labelled = np.bincount(self.rows.codes[rows] + 1, minlength=len(size))
        weight = size / np.maximum(labelled, 1)
        return {row: float(weight[self.rows.codes[row] + 1]) for row in rows.tolist()}

    def next_step(self, answered: Sequence[Answered]) -> str:
        """Return the command that refines with these labels."""
        if self.rows.pseudo is None:
            return f"whet annotate {_quoted(self.out)} --task TASK --model MODEL --out labelled.csv"
        words = ["whet", "refine", str(self.out), "--text", self.rows.text]
        words += ["--pseudo", self.rows.pseudo, "--gold", GOLD]
        if any(row.label is not None and not row.random for row in answered):
            words += ["--checked", CHECKED]
        return " ".join(map(shlex.quote, [*words, "--out", _free("run")]))


def _hash(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 that tells where each part ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} ".encode() + part)
    return digest.hexdigest()


def _free(name: str) -> str:
    """Return a folder's name that is not taken, so that the command can be run as it stands."""
    number = 1
    while Path(name if number == 1 else f"{name}-{number}").exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _note(found: Answered) -> str:
    if len(found.answers) == 1:
        return next(iter(found.notes.values()))
    return "; ".join(f"{who}: {note}" for who, note in found.notes.items())


def _overlaid(
    table: pa.Table, name: str, values: dict[int, Any], fresh: set[int], kind: pa.DataType
) -> pa.Table:
    """Return the table with a column of values; other rows keep what they had in it."""
    column: list[Any] = [None] * table.num_rows
    if name in table.column_names:
        before = table[name].to_pylist()
        column = [None if row in fresh else value for row, value in enumerate(before)]
        if not all(value is None for value in column):
            kind = table.schema.field(name).type
        table = table.drop_columns([name])
    for row, value in values.items():
        column[row] = value
    try:
        return table.append_column(name, pa.array(column, kind))
    except (pa.ArrowException, TypeError) as error:
        raise WhetError(
            f"the column {name!r} holds {kind}, and the classes are others ({error}): rename it"
        ) from error
