"""The plane of style against photo: means of what was measured of pictures, by style loss and weight."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxstyle.lab import records

#: Of the table, by the field of a measured row.
COLUMNS = {
    "effectiveness": "effectiveness",
    "style": "style distance",
    "sifid": "SIFID",
    "palette": "palette",
    "lpips": "LPIPS",
    "self_similarity": "self-similarity",
}


def means(rows: Iterable[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """By arm the means over the pairs that all arms have, and of the times the least.

    Args:
      rows: one for an `arm` and a `pair`, with `COLUMNS` and `milliseconds`.
      arms: in the order of the result.
    """
    of: dict[str, dict[str, Mapping[str, Any]]] = {arm: {} for arm in arms}
    for row in rows:
        if row["arm"] in of:
            of[row["arm"]][row["pair"]] = row
    shared = set.intersection(*(set(each) for each in of.values()))
    found = {}
    for arm, by_pair in of.items():
        mine = [by_pair[pair] for pair in sorted(shared)]
        found[arm] = {field: float(np.mean([row[field] for row in mine])) for field in COLUMNS}
        found[arm] |= {
            "milliseconds": float(np.fmin.reduce([row["milliseconds"] for row in mine])),
            "pairs": len(mine),
        }
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """In Markdown."""
    head = ["arm", *COLUMNS.values(), "ms an evaluation, least"]
    rows = [
        [arm, *(f"{row[field]:.3g}" for field in COLUMNS), f"{row['milliseconds']:.0f}"]
        for arm, row in found.items()
    ]
    return records.markdown((head, rows))
