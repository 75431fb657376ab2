"""The annotations bite: mypy refuses wrong calls, and no right ones."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

HERE = pathlib.Path(__file__).parent
CALLS = HERE / "wrong_types.py"


def test_mypy_refuses_each_wrong_call(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)),
            *("inbatch_neg", str(CALLS.relative_to(HERE.parent))),
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    lines = CALLS.read_text(encoding="utf-8").splitlines()
    wrong = [n for n, line in enumerate(lines, 1) if line.endswith("# wrong")]
    assert len(wrong) >= 8
    refused = re.findall(r"^(\S+?):(\d+): error", done.stdout, re.M)
    assert {pathlib.Path(path).name for path, _ in refused} == {CALLS.name}, (
        done.stdout + done.stderr
    )
    assert sorted({int(line) for _, line in refused}) == wrong, done.stdout
