"""What README says that a file can confirm."""

import json
import runpy
from pathlib import Path

BESIDE = Path(__file__).parent / "benchmarks" / "against_torch" / "table.py"


def test_the_table_of_speed_is_that_of_the_measured_figures():
    table = runpy.run_path(str(BESIDE))
    text, figures = table["README"].read_text(), json.loads(table["RESULTS"].read_text())
    assert table["replaced"](text, figures) == text
    rows = text.split(table["BEGIN"])[1].split(table["END"])[0].splitlines()[2:]
    assert len(rows) == len(table["WORK"].keys() & figures["items"].keys()) > 0
