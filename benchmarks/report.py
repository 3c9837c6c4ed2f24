"""Time, memory, size and load time of the report of a run, by the rows of the run.

    python benchmarks/report.py --out benchmarks/results/report [--rows 10000,100000,1000000]
        [--chromium /usr/bin/chromium]

A run over 2,000 made-up texts of three classes, of which every 50th has 100,000 characters and the
others about 70, is refined once; its folder is then repeated up to the size in question, each
text with a number of its own. `whet report` runs once for each size in a process of its own. The
load time is that of chromium, from the start of the navigation to the end of its load event, the
median of five; without --chromium it is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet import __version__

#: Rows of the run that is refined.
SMALL = 2_000
WORDS = (
    "bank stock price fund market shares profit bond loan rate",
    "goal match team coach league player score cup win season",
    "cell gene virus protein drug trial patient dose tissue lab",
)
WHET = [sys.executable, "-c", "import sys; from whet.cli import main; main(sys.argv[1:])"]


def refine(folder: Path) -> None:
    """Refine a small corpus into ``folder / "small"``."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, SMALL)
    pseudo = np.where(rng.random(SMALL) < 0.7, truth, rng.integers(0, 3, SMALL))
    names = np.array(["money", "sport", "science"])
    texts = [" ".join(rng.choice(WORDS[y].split(), 11)) for y in truth]
    texts = [t if i % 50 else (t + " ") * (100_000 // len(t)) for i, t in enumerate(texts)]
    known = rng.permutation(SMALL) < 100
    table = {
        "text": texts,
        "llm": names[pseudo],
        "gold": pa.array(names[truth], mask=~known),
    }
    pq.write_table(pa.table(table), folder / "corpus.parquet")
    words = ["refine", str(folder / "corpus.parquet"), "--text", "text", "--pseudo", "llm"]
    words += ["--gold", "gold", "--out", str(folder / "small")]
    subprocess.run([*WHET, *words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def repeat(small: Path, rows: int, target: Path) -> None:
    """Write a run folder that holds a small one again and again."""
    copies = rows // SMALL
    manifest = json.loads((small / "run.json").read_text())
    manifest["rows"] |= {key: manifest["rows"][key] * copies for key in ("total", "changed")}
    target.mkdir()
    (target / "run.json").write_text(json.dumps(manifest))
    last = f"rounds/{manifest['rounds'][-1]['round']:02d}/labels.parquet"
    (target / last).parent.mkdir(parents=True)
    for name in ("refined.parquet", last):
        table = pq.read_table(small / name)
        with pq.ParquetWriter(target / name, table.schema, compression="zstd") as writer:
            for copy in range(copies):
                part = table
                if "text" in table.column_names:
                    texts = pc.binary_join_element_wise(table["text"], f"copy {copy}", " ")
                    part = table.set_column(table.column_names.index("text"), "text", texts)
                if copy and "reason" in table.column_names:  # the gold rows are those of copy 0
                    other = pc.replace_with_mask(
                        table["reason"].combine_chunks(),
                        pc.equal(table["reason"], "gold label").combine_chunks(),
                        "classifier agrees 1.00",
                    )
                    part = part.set_column(table.column_names.index("reason"), "reason", other)
                writer.write_table(part)


def measure(folder: Path, chromium: str | None) -> dict[str, Any]:
    """Report on a run and return what that took."""
    began = time.perf_counter()
    process = subprocess.Popen([*WHET, "report", str(folder)], stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"whet report ended with status {status}")
    page = folder / "report.html"
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_mib": used.ru_maxrss // 1024,
        "megabytes": round(page.stat().st_size / 1e6, 3),
        "load_seconds": None if chromium is None else load_time(page, chromium),
    }


def load_time(page: Path, chromium: str) -> float:
    """Return the median time that chromium takes to load a page, in seconds."""
    from playwright.sync_api import sync_playwright

    script = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    taken = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_function(f"{script} > 0")
            taken.append(tab.evaluate(script) / 1000)
            tab.close()
        browser.close()
    return round(statistics.median(taken), 3)


def table(found: list[dict[str, Any]]) -> str:
    """Return the measurements as a Markdown table."""
    head = ("rows", "whet report, s", "CPU, s", "peak memory, MiB", "page, MB", "load, s")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run in found:
        load = "-" if run["load_seconds"] is None else f"{run['load_seconds']:.2f}"
        lines.append(
            f"| {run['rows']:,} | {run['seconds']:.1f} | {run['cpu_seconds']:.1f} | "
            f"{run['peak_memory_mib']:,} | {run['megabytes']:.2f} | {load} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time, memory and size of a report, by rows.")
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--chromium", help="an installed chromium, for the load time")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="whet-report-") as name:
        folder = Path(name)
        refine(folder)
        for rows in sorted(map(int, args.rows.split(","))):
            repeat(folder / "small", rows, folder / str(rows))
            run = measure(folder / str(rows), args.chromium)
            found.append({"rows": rows, **run})
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/report.py " + " ".join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    (args.out / "results.json").write_text(
        json.dumps({"command": command, "machine": machine, "runs": found}, indent=1) + "\n"
    )
    text = f"# The report, by rows\n\n`{command}`\n\n{machine}.\n\n{table(found)}\n"
    (args.out / "table.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
