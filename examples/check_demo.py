"""Check the demo against the truth, which whet did not see: only this script reads that column.

python examples/check_demo.py RUN/refined.parquet
"""

import sys

import numpy as np
import pyarrow.parquet as pq


def main() -> int:
    """Print the true accuracies, on rows without a gold label."""
    table = pq.read_table(sys.argv[1])
    column = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
    unseen = column["gold"] == None  # noqa: E711 - elementwise
    answered = unseen & (column["pseudo_label"] != None)  # noqa: E711
    right = column["refined_label"] == column["truth"]
    rule_right = column["pseudo_label"] == column["truth"]
    lines = (
        ("keyword rule, where it answered", rule_right[answered]),
        ("refined labels, on the same rows", right[answered]),
        ("refined labels, where the rule abstained", right[unseen & ~answered]),
        ("refined labels, all rows", right[unseen]),
    )
    sys.stdout.write("\nThe demo knows the truth. Accuracy on rows without a gold label:\n")
    for name, hits in lines:
        sys.stdout.write(f"  {name:42s} {hits.mean():.3f}  (n = {len(hits):,})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
