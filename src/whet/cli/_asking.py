"""What the verbs that ask a model share: input, task, back end, budget, cache, account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

from cyclopts import Parameter

from whet.cli._progress import ProgressReporter
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.annotate.annotator import Annotator
    from whet.annotate.plan import Plan
    from whet.annotate.protocol import Stop
    from whet.annotate.self_refine import SelfRefiner

#: Seconds after which the next trouble is another one.
LONGEST_QUIET = 60.0
#: Marks an account, so that a later run knows a file as its own.
KIND = "whet annotation"


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags that all asking verbs have.

    Examples
    --------
    >>> Flags(task="media_bias", model="m").backend
    'openai'
    """

    task: Annotated[str, _help("Task file (YAML), or the name of a task that comes with whet.")]
    out: Annotated[Path | None, _help("File to write: .csv, .tsv, .jsonl or .parquet.")] = None
    model: Annotated[str | None, _help("Model, as the server names it; or a folder.")] = None
    backend: Annotated[
        str, _help("openai (any compatible server), anthropic, local, or replay:FILE#COLUMN.")
    ] = "openai"
    base_url: Annotated[
        str | None, _help("Server, such as http://localhost:8000/v1. [default: the provider's]")
    ] = None
    key_env: Annotated[
        str | None,
        _help(
            "Environment variable that holds the key. [default: OPENAI_API_KEY or "
            "ANTHROPIC_API_KEY at the provider's own address, none elsewhere]"
        ),
    ] = None
    text: Annotated[str, _help("Column of texts. [default: text]")] = "text"
    gold: Annotated[
        str | None, _help("Column of true labels: for examples, and to measure accuracy.")
    ] = None
    column: Annotated[str, _help("Column to write. [default: pseudo_label]")] = "pseudo_label"
    max_cost: Annotated[
        float | None, _help("Stop before the call that would pass so many US dollars.")
    ] = None
    max_calls: Annotated[int | None, _help("Stop after so many calls, retries included.")] = None
    price: Annotated[
        str | None, _help("IN,OUT: US dollars per million tokens. [default: the known price]")
    ] = None
    concurrency: Annotated[int, _help("Calls in flight. [default: 16]")] = 16
    timeout: Annotated[float, _help("Seconds until a call is given up. [default: 120]")] = 120.0
    max_tokens: Annotated[
        int | None,
        _help("Longest answer, thinking included. [default: 64 for a label, 512 with explain]"),
    ] = None
    limit: Annotated[int | None, _help("Only so many first rows.")] = None
    cache: Annotated[
        Path | None, _help("Answers paid for. [default: whet-answers.sqlite beside --out]")
    ] = None
    seed: Annotated[int, _help("Draws examples from gold rows. [default: 0]")] = 0
    batch: Annotated[
        bool, Parameter(help="Ask through the batch interface, at half price.", negative="")
    ] = False
    dry_run: Annotated[
        bool, Parameter(help="Count calls, tokens, price and time; ask nothing.", negative="")
    ] = False


class Asking:
    r"""Everything an asking verb needs, checked before the first call.

    Parameters
    ----------
    source : Path
        The table.
    flags : Flags
        With ``dry_run`` nothing is written: a cache that is not there stays so.

    Attributes
    ----------
    rows : Rows
    backend : Backend
    budget : Budget
    price : Price or None
    hosted : bool
        Whether a provider's own server is asked.
    cache : AnswerCache
    out, account_path : Path

    Raises
    ------
    WhetError
        If a flag, the table, the task or the environment is not usable.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.csv").write_text("text\nhello\n")
    >>> flags = Flags(
    ...     task="media_bias", model="m", base_url="http://localhost:1/v1", dry_run=True
    ... )
    >>> with Asking(folder / "a.csv", flags) as asking:
    ...     asking.rows.stream.num_rows
    1
    """

    def __init__(self, source: Path, flags: Flags) -> None:
        from whet.annotate.annotator import read_rows
        from whet.annotate.budget import Budget
        from whet.annotate.cache import AnswerCache
        from whet.annotate.connect import connect, is_hosted, price_of
        from whet.annotate.task import load_task
        from whet.streams import RowStream
        from whet.tables import check_output

        self.source, self.flags = source, flags
        self._asked = 0
        _check_numbers(flags)
        if flags.out is None and not flags.dry_run:
            raise WhetError("--out is missing: name the file to write")
        self.out = flags.out or Path("labelled.parquet")
        check_output(self.out)
        task = load_task(flags.task)
        stream = RowStream(source, flags.limit)
        self.rows = read_rows(stream, task, text=flags.text, gold=flags.gold, seed=flags.seed)
        self.hosted = is_hosted(flags.backend, flags.base_url)
        self.price = price_of(flags.model, flags.price, hosted=self.hosted)
        if flags.max_cost is not None and self.price is None:
            raise WhetError(
                f"--max-cost {flags.max_cost:g} needs a price, and none is known for "
                f"{flags.model!r}: give --price IN,OUT"
            )
        self.budget = Budget(self.price, flags.max_cost, flags.max_calls)
        path = flags.cache or self.out.with_name("whet-answers.sqlite")
        if not path.parent.is_dir():
            raise WhetError(f"the folder {path.parent} does not exist: create it first")
        self.cache = AnswerCache(None if flags.dry_run and not path.exists() else path)
        try:
            self.backend = connect(
                flags.backend,
                flags.model,
                base_url=flags.base_url,
                key_env=flags.key_env,
                budget=self.budget,
                cache=self.cache,
                max_tokens=flags.max_tokens,
                timeout=flags.timeout,
                ask=not flags.dry_run,
                task=self.rows.task,
                text=flags.text,
            )
        except BaseException:
            self.cache.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cache.close()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                f"interrupted; every answer so far is kept in {self.cache.path}: run the same "
                "command again to go on"
            ) from None

    @property
    def account_path(self) -> Path:
        """Where the account of the output lies."""
        return account_of(self.out)

    @contextmanager
    def progress(self) -> Iterator[ProgressReporter]:
        """Show progress, with what was spent."""

        def note() -> str:
            spent = self.budget.spent
            if not spent.calls:
                return ""
            paid = f", ${spent.cost:.4f}" if self.price is not None else ""
            return f"{spent.calls:,} calls{paid}"

        with ProgressReporter(note) as reporter:
            yield reporter

    def _remember_speed(self) -> None:
        """Keep the time of a call for later plans."""
        from whet.annotate.plan import remember_speed

        remember_speed(self.cache, self.backend)

    def buy(self, asker: Annotator | SelfRefiner) -> Stop | None:
        """Get the answers that the cache lacks, one by one or in batches."""
        from whet.annotate.annotator import run_async, talks
        from whet.annotate.batch import buy_batches
        from whet.annotate.openai import OpenAIBackend
        from whet.annotate.protocol import Stop
        from whet.annotate.web import WebBackend

        with self.progress() as progress:
            asker.engine.tell = progress.say
            if isinstance(self.backend, WebBackend):
                self.backend.tell = _Patient(progress.say)
            if not self.flags.batch:
                stop = asker.buy(self.rows, progress)
                self._asked = asker.engine.asked
                self._remember_speed()
                return stop
            if not isinstance(self.backend, OpenAIBackend):
                raise WhetError(
                    f"--batch needs --backend openai, and this is {self.flags.backend}: drop one"
                )

            again = partial(talks, asker, self.rows)
            try:
                return run_async(buy_batches(self.backend, self.cache, again, progress))
            except Stop as stop:
                raise WhetError(stop.reason) from None

    def spent_rows(self) -> list[tuple[str, str]]:
        """Return what this run and all runs have spent, for the closing table."""
        spent, paid = self.budget.spent, self.cache.paid(self.backend.route)
        if self.flags.backend not in ("openai", "anthropic"):
            return [("asked in this run", f"{self._asked:,} requests")]
        cost = f", ${spent.cost:.4f}" if self.price is not None else ""
        rows = [
            (
                "calls of this run",
                f"{spent.calls:,} ({spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens"
                f"{cost})",
            )
        ]
        tokens = paid.prompt_tokens, paid.completion_tokens
        all_cost = f", ${self.price.cost(*tokens):.4f}" if self.price is not None else ""
        rows.append(
            (
                "answers in the cache",
                f"{paid.answers:,} of this model ({tokens[0]:,} + {tokens[1]:,} tokens{all_cost})",
            )
        )
        return rows


class _Patient:
    """Says that something is wrong once it has been so for a while, and then now and again."""

    def __init__(self, say: Callable[[str], None], first: float = 3.0, then: float = 10.0) -> None:
        self._say, self._first, self._then = say, first, then
        self._since = self._last = self._heard = 0.0

    def __call__(self, said: str) -> None:
        now = time.monotonic()
        if now - self._heard > 2 * LONGEST_QUIET:  # another trouble
            self._since = self._last = now
        self._heard = now
        if now - self._since >= self._first and now - self._last >= self._then:
            self._last = now
            self._say(said)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence on how to go on.

    Examples
    --------
    >>> str(Interrupted("run it again"))
    'run it again'
    """


def _check_numbers(flags: Flags) -> None:
    for name, value, least in (
        ("--limit", flags.limit, 1),
        ("--max-calls", flags.max_calls, 0),
        ("--max-cost", flags.max_cost, 0),
        ("--max-tokens", flags.max_tokens, 1),
    ):
        if value is not None and not value >= least:
            raise WhetError(f"{name} {value:g} is less than {least}: raise it")
    if not flags.timeout > 0:
        raise WhetError(f"--timeout {flags.timeout:g} is no time to wait: give seconds above 0")


def account_of(out: Path) -> Path:
    """Return where the account of an output lies."""
    return out.with_name(out.name + ".json")


def check_target(out: Path, source: Path, rows: int) -> None:
    """Raise ``WhetError`` where writing would destroy something that whet did not write."""
    if out.exists() and source.exists() and out.samefile(source):
        raise WhetError(f"--out {out} is the input, which whet never changes: choose another file")
    if not out.exists():
        return
    from whet.store import read_json, sha256_of

    try:
        account = read_json(account_of(out))
    except WhetError:
        account = {}
    if account.get("kind") != KIND:
        raise WhetError(f"{out} exists and is no earlier result of this command: choose another")
    before = account.get("rows_written", 0)
    if before > rows:
        raise WhetError(
            f"{out} holds {before} rows of an earlier run, and this one would leave {rows}: choose "
            "another, or remove it"
        )
    if account.get("output_sha256") != sha256_of(out):
        raise WhetError(
            f"{out} was changed after this command wrote it, and would be lost: choose another, or "
            "remove it"
        )


def ask_account(
    asking: Asking, digest: str, judged: list[dict[str, Any]], stop: Stop | None
) -> dict[str, Any]:
    """Return what decides an output: input, task, model; nothing that differs between reruns.

    Parameters
    ----------
    asking : Asking
    digest : str
        The output's SHA-256: by it a later run sees whether somebody changed the file.
    judged : list of dict
        What the gold labels were used for, beside examples; uses of no row are left out.
    stop : Stop or None
    """
    from whet import __version__
    from whet.store import sha256_of

    rows = asking.rows
    uses: list[dict[str, Any]] = []
    if rows.shown:
        uses.append({"purpose": "examples in the prompt", "rows": sorted(rows.shown)})
    uses += [use for use in judged if use["rows"]]
    given = sum(label is not None for label in rows.gold_labels())
    return {
        "kind": KIND,
        "whet_version": __version__,
        "output_sha256": digest,
        "rows_written": rows.stream.num_rows,
        "stopped": None if stop is None else stop.reason,
        "input": {"path": str(asking.source), "sha256": sha256_of(asking.source)},
        "limit": asking.flags.limit,
        "text": asking.flags.text,
        "gold": {"column": rows.gold, "given": given, "uses": uses},
        "task": rows.task.as_dict(),
        "route": dict(asking.backend.route),
    }


def end(stop: Stop | None) -> None:
    """Exit with code 3 where a limit that the user set left rows out."""
    if stop is not None:
        raise SystemExit(3)


def print_table(
    said: str, rows: Sequence[tuple[str, str]], following: str, command: str = ""
) -> None:
    """Print a sentence, a table and the next step; a command stands alone on its line."""
    from rich.table import Table

    from whet.cli import console, plain

    screen = console()
    screen.print()
    screen.print(plain(said), style="bold")
    screen.print()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(plain(name), plain(value))
    screen.print(table)
    screen.print()
    if following:
        screen.print(plain(f"Next: {following}"))
        if command:
            screen.print(plain(command))
    else:
        screen.print(plain(f"Next: {command}"))


def show_plan(asking: Asking, asker: Annotator | SelfRefiner) -> None:
    """Print what a run would ask, and what it would cost."""
    from whet.annotate.plan import make_plan

    with asking.progress() as progress:
        plan = make_plan(asker, asking.rows, asking.price, progress)
    if asking.flags.batch and plan.cost is not None:
        from whet.annotate.prices import batch_discount

        plan = replace(plan, cost=plan.cost * (1 - batch_discount()), seconds=None)
    print_table("Nothing was asked.", _plan_rows(plan, asking), "run again without --dry-run")


def _plan_rows(plan: Plan, asking: Asking) -> list[tuple[str, str]]:
    basis = (
        f"measured on n = {plan.measured:,} answers of this model"
        if plan.measured
        else "guessed at 4 bytes a token; a run with --limit 20 makes it a measurement"
    )
    cost = "no price known: give --price IN,OUT"
    if plan.cost is not None and asking.price is not None:
        cost = f"${plan.cost:.4f} at ${asking.price.input:g} / ${asking.price.output:g} a million"
        cost += ", half of it for a batch" if asking.flags.batch else ""
        cost += f", prices of {asking.price.checked}" if asking.price.checked else ""
    thinking = "" if plan.measured else "; a model that thinks takes many times more"
    time = "unknown until a call was timed; a run with --limit 20 does"
    if asking.flags.batch:
        time = "within a day"
    elif plan.seconds is not None:
        time = f"{plan.seconds:,.0f} s with {asking.flags.concurrency} calls in flight"
    return [
        ("rows", f"{plan.rows:,}"),
        ("calls", f"{plan.calls:,} ({plan.known:,} answers are in the cache)"),
        ("prompt tokens", f"{plan.prompt_tokens:,}, {basis}"),
        ("answer tokens", f"{plan.completion_tokens:,}{thinking}"),
        ("price", cost),
        ("time", time),
        ("cache", str(asking.cache.path or "none yet")),
    ]
