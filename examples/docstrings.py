"""Make the demo's corpus: what numpy, scipy, scikit-learn and pyarrow say about themselves.

    python examples/docstrings.py OUT.csv [--gold 50] [--seed 0]

Nothing is downloaded: the texts are the documentation strings of the public functions, classes
and methods of four packages that are installed wherever whet's core is.  Each row of OUT.csv has

    name    the object, by its shortest public name
    text    the opening part of its docstring, as a person would read it
    rule    a noisy label, from a keyword rule; empty where no keyword occurs (it abstained)
    gold    the true class of N rows drawn at random with the seed; empty elsewhere
    truth   the true class of every row, only so that the demo can check itself

Where the labels come from, honestly.  The truth is where the object lives: "statistics" for
numpy.random, scipy.cluster, scipy.stats and sklearn, "computing" for everything else.  That is a
fact about files, so a few truths look odd to a reader: numpy.mean is "computing", and a helper
in sklearn.utils is "statistics".  The rule is ours; nobody's LLM was asked.  It is two short
lists of keywords, and it errs the way such rules do ("data" occurs everywhere).  The corpus
depends on the installed versions of the four packages, the gold rows on the seed as well.
"""

import argparse
import csv
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np

# A package comes after those it imports from, so that what it re-exports stays its owner's.
PACKAGES = ("numpy", "scipy", "pyarrow", "sklearn")
STATISTICS_MODULES = ("numpy.random", "scipy.cluster", "scipy.stats", "sklearn")
SKIPPED = (
    *("conftest", "setup", "testing", "tests", "testutils"),
    *("distutils", "f2py", "typing"),  # for builds and for type checkers
    *("externals", "vendored"),  # other projects' code
    *("core", "cython_special"),  # what is said better elsewhere
)

# Word beginnings, as they came to mind.
STATISTICS_WORDS = re.compile(
    r"\b(?:class|data|distribution|estimat|feature|fit|mean|model|predict|probabilit|random"
    r"|regress|sample|score|statistic|test|train|variance)",
    re.IGNORECASE,
)
COMPUTING_WORDS = re.compile(
    r"\b(?:array|buffer|byte|dimension|dtype|element|file|index|integer|interpolat|matri|memory"
    r"|polynomial|shape|string|transform)",
    re.IGNORECASE,
)

MIN_CHARS = 30
MAX_CHARS = 600

# Compiled functions open with one or two call signatures, each a paragraph.
SIGNATURE = re.compile(
    r"\A(?:\s*(?:[\w,\[\]]+ = )?[\w.]+\([^\n]*(?:\n(?!\n)[^\n]*)*?\)(?:[ ]*->[^\n]*)?[ ]*"
    r"(?:\n--[ ]*)?(?:\n|\Z))+"
)
# The opening part ends at the first underlined heading, or at a heading with a colon.
HEADING = re.compile(
    r"^[ ]*\S[^\n]*\n[ ]*[-=~]{3,}[ ]*$"
    r"|^[ ]*(?:Parameters|Arguments|Args|Returns|Examples?|See Also|References|Notes?)[ ]*:[ ]*$",
    re.MULTILINE | re.IGNORECASE,
)
# A reST directive (version notes, formulas, citations) with the indented lines that belong to it.
DIRECTIVE = re.compile(r"^([ ]*)\.\. [^\n]*(?:\n(?:[ ]*$|\1[ ]+[^\n]*))*", re.MULTILINE)
EXAMPLE = re.compile(r"^[ ]*>>>[^\n]*(?:\n[ ]*\S[^\n]*)*", re.MULTILINE)
# What a package pastes into many docstrings would name it as plainly as its path does.
PASTED = re.compile(
    r"As an instance of the \S+ class, .*?this particular distribution\."
    r"|(?:New|Added|Deprecated|Changed) (?:in|since) version [\d.]+\S*",
    re.DOTALL,
)
SENTENCE_END = re.compile(r"(?<=\.)\s+|\n\s*\n")
# What gives away a sentence that only sends the reader elsewhere.
POINTER = re.compile(
    r"(?:user|evaluation|visualization) guide|\bsee also\b|for full documentation|sphx_glr_",
    re.IGNORECASE,
)
ROLE = re.compile(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
BOLD = re.compile(r"(?<![\w)])\*\*([^*\n]+)\*\*")
CITATION = re.compile(r"\s*\[[\w.+-]*\]_")
DOTTED = re.compile(r"\b(?:np|numpy|scipy|sklearn|pyarrow|pa|pc)(?:\.\w+)*\.(\w+)")
PACKAGE_NAME = re.compile(
    r"\w*(?:numpy|scipy|scikit.learn|sklearn|pyarrow)\w*|\b(?:apache )?(?:lib)?arrow\b",
    re.IGNORECASE,
)


def clean(doc: str) -> str:
    """Return what a person would read of a docstring, without what names its package."""
    text = SIGNATURE.sub("", inspect.cleandoc(doc))
    heading = HEADING.search(text)
    text = text[: heading.start()] if heading else text
    for pattern in (DIRECTIVE, EXAMPLE, PASTED):
        text = pattern.sub(" ", text)
    text = CITATION.sub("", ROLE.sub(r"\1", text))
    text = DOTTED.sub(r"\1", text)
    text = " ".join(s for s in SENTENCE_END.split(text) if not POINTER.search(s))
    text = PACKAGE_NAME.sub("library", text)
    text = re.sub(r"\b([Aa])n library\b", r"\1 library", text)
    text = re.sub(r"::(?=\s)", ":", re.sub("`~?", "", BOLD.sub(r"\1", text)))
    return textwrap.shorten(text, MAX_CHARS, placeholder="")


def import_or_none(name: str) -> ModuleType | None:
    """Import a module, or say that it cannot be had: optional ones need not be installed."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def public_modules(name: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield a module and all public ones under it."""
    module = import_or_none(name)
    if module is None:
        return
    yield name, module
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        # libarrow*: C libraries that lie beside pyarrow's modules and only look like modules.
        if info.name not in SKIPPED and not info.name.startswith(("_", "libarrow")):
            yield from public_modules(f"{name}.{info.name}")


def public_members(owner: object, names: list[str]) -> Iterator[tuple[str, object, str]]:
    """Yield name, object and docstring of the members that can be called."""
    for name in sorted(names):
        try:
            member = getattr(owner, name)
            doc = getattr(member, "__doc__", None)
        except Exception:  # noqa: S112  (a lazy or deprecated name that refuses to be read)
            continue
        if not name.startswith("_") and callable(member) and isinstance(doc, str):
            yield name, member, doc


def documented(package: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a package's public functions, classes and methods."""
    for path, module in public_modules(package):
        listed = getattr(module, "__all__", None)
        # What a module merely imported is not its own: without a list, it must come from inside.
        inside = path if listed is None else package
        for name, member, doc in public_members(module, dir(module) if listed is None else listed):
            # Some compiled functions do not tell where they come from; a list vouches for them.
            home = getattr(member, "__module__", None) or package
            if not f"{home}.".startswith(f"{inside}."):
                continue
            yield f"{path}.{name}", doc
            if inspect.isclass(member):
                for method, _, method_doc in public_members(member, list(vars(member))):
                    yield f"{path}.{name}.{method}", method_doc


def true_class(name: str) -> str:
    """Return the class of an object: where it lives decides."""
    in_statistics = any(f"{name}.".startswith(f"{m}.") for m in STATISTICS_MODULES)
    return "statistics" if in_statistics else "computing"


def collect() -> dict[str, str]:
    """Return the corpus, name to text, sorted by name, each text once."""
    texts: dict[str, str] = {}  # text to the shortest name that carries it
    for package in PACKAGES:
        found: dict[str, str] = {}
        for name, doc in documented(package):
            text = clean(doc)
            best = found.get(text, name)
            found[text] = min(best, name, key=lambda n: (n.count("."), len(n), n))
        for text, name in found.items():
            texts.setdefault(text, name)
    return dict(sorted((name, text) for text, name in texts.items() if len(text) >= MIN_CHARS))


def keyword_rule(text: str) -> str:
    """Label a text by the keywords in it; empty when there is none."""
    if STATISTICS_WORDS.search(text):
        return "statistics"
    return "computing" if COMPUTING_WORDS.search(text) else ""


def write_corpus(out: Path, n_gold: int, seed: int) -> int:
    """Write the corpus and return its number of rows."""
    corpus = collect()
    if n_gold > len(corpus):
        raise ValueError(f"--gold {n_gold} asks for more rows than the {len(corpus)} there are")
    drawn = set(np.random.default_rng(seed).permutation(len(corpus))[:n_gold].tolist())
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "text", "rule", "gold", "truth"])
        for i, (name, text) in enumerate(corpus.items()):
            truth = true_class(name)
            writer.writerow([name, text, keyword_rule(text), truth if i in drawn else "", truth])
    return len(corpus)


def natural(value: str) -> int:
    """Read a whole number that is not negative."""
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage text."""
        self.exit(2, f"{self.prog}: {message}\n")


def main() -> int:
    """Run the command and return its exit code."""
    parser = Parser(description="Write the demo's corpus as CSV.")
    parser.add_argument("out", metavar="OUT.csv", type=Path)
    parser.add_argument("--gold", type=natural, default=50, help="rows with a gold label (50)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the gold sample (0)")
    args = parser.parse_args()
    # Walking whole packages touches every deprecated name in them; none of that concerns the user.
    warnings.simplefilter("ignore")
    try:
        rows = write_corpus(args.out, args.gold, args.seed)
    except OSError as error:
        parser.error(f"cannot write {args.out}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{rows} rows written to {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
