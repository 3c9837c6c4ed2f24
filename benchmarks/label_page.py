"""How long the page of ``whet label`` keeps a person waiting: from a key to the next row.

A real chromium, driven by Playwright, labels 50 rows of sms_spam with the verb's own server. A key
is sent every 0.4 s; the answer is committed to disk before the next row is shown. What a person
needs to read a message is not measured: a script cannot.

    python benchmarks/label_page.py --data ../shared/data --out benchmarks/results/label-page.md
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from whet import __version__
from whet.store import write_atomic

ROWS, PAUSE = 50, 400
TEXT, LABEL = "text", "label"
#: Sends a key as a keyboard does, and returns milliseconds until the next row is painted.
STEP = """async (pause) => {
  const title = document.getElementById("row-title");
  const took = [];
  for (;;) {
    await new Promise((done) => setTimeout(done, pause));
    const before = title.textContent, began = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "1", code: "Digit1", bubbles: true}));
    while (title.textContent === before && document.getElementById("end").hidden)
      await new Promise((done) => setTimeout(done));
    if (!document.getElementById("end").hidden) return took;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    took.push(performance.now() - began);
  }
}"""


def main() -> None:
    """Label, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = pq.read_table(arguments.data / "sms_spam" / "train.parquet")
        pq.write_table(table, Path(folder) / "corpus.parquet")
        words = [sys.executable, "-m", "whet", "label", "corpus.parquet", "--text", TEXT]
        words += ["--pseudo", LABEL, "--n", str(ROWS), "--no-browser"]
        with subprocess.Popen(  # noqa: S603 - our own command
            words,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        ) as server:
            try:
                took = label_rows(address(server))
            finally:
                server.send_signal(signal.SIGINT)
    median, slow, most = np.median(took), np.percentile(took, 95), np.max(took)
    command = shlex.join(["python", "benchmarks/label_page.py", *sys.argv[1:]])
    lines = [
        "# From a key to the next row on the page of whet label",
        "",
        f"    {command}",
        "",
        f"whet {__version__}, {platform.platform()}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}. {table.num_rows:,} rows of sms_spam, {ROWS} of them labelled.",
        "",
        "| rows | median, ms | 95th percentile, ms | longest, ms |",
        "|---|---|---|---|",
        f"| {len(took)} | {median:.0f} | {slow:.0f} | {most:.0f} |",
    ]
    text = "\n".join(lines) + "\n"
    write_atomic(arguments.out, lambda file: file.write(text.encode()))
    sys.stderr.write(text)


def address(server: subprocess.Popen) -> str:
    """Return the address that the command prints."""
    for line in server.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+", line)
        if found:
            return found[0]
    sys.exit("whet label ended before it printed an address")


def label_rows(url: str) -> list[float]:
    """Answer all rows with the first class."""
    from playwright.sync_api import sync_playwright

    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{url}#who=me")
        page.wait_for_selector("#work:not([hidden])")
        took = page.evaluate(STEP, PAUSE)
        chromium.close()
    return took


if __name__ == "__main__":
    main()
