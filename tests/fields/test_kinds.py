"""docs/compiled.md lists the kinds of field that were tried."""

from __future__ import annotations

import re
from pathlib import Path

from field_zoo import FIELDS, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "compiled.md"


def test_the_page_lists_every_kind_of_field():
    part = PAGE.read_text().partition("## Kinds of field")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in part.splitlines() if line.startswith("| ")]
    listed = {row[0].strip(): row[-1].strip() for row in rows[1:]}
    assert listed.keys() == FIELDS.keys() | REFUSED.keys() and len(rows) == len(listed) + 1
    for name, said in listed.items():
        if name in FIELDS:
            assert said == "yes"
        else:
            assert re.search(REFUSED[name][2], said), (name, said)
