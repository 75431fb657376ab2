"""Runs mypy on a user's file, against the package as it is installed.

    python -m tests.installed_types PYTHON

PYTHON is an interpreter whose environment has the package from its wheel. Fails
if the annotations do not reach the user, as without `py.typed`: mypy must
refuse the wrong calls of tests/wrong_types.py, and nothing else.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

CALLS = pathlib.Path(__file__).with_name("wrong_types.py")
# They are large, and their annotations are no contract of ours.
CONFIGURATION = """
[mypy]
[mypy-keras.*,tensorflow.*,jax.*,torch.*]
follow_imports = skip
ignore_missing_imports = true
"""


def check(python):
    """Returns what mypy says if that is wrong, or None."""
    text = CALLS.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        user = pathlib.Path(folder, "user.py")
        user.write_text(text, encoding="utf-8")
        configuration = pathlib.Path(folder, "mypy.ini")
        configuration.write_text(CONFIGURATION, encoding="utf-8")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "user.py"),
                *("--python-executable", python),
                *("--config-file", "mypy.ini", "--cache-dir", "cache"),
            ],
            cwd=folder,  # where no checkout of the package is
            capture_output=True,
            text=True,
        )
    lines = enumerate(text.splitlines(), 1)
    wrong = {n for n, line in lines if line.endswith("# wrong")}
    refused = re.findall(r"^user\.py:(\d+): error", done.stdout, re.M)
    if wrong and {int(line) for line in refused} == wrong:
        return None
    return done.stdout + done.stderr


def main(python):
    problem = check(str(pathlib.Path(python).absolute()))
    if problem is not None:
        sys.exit(problem)
    print("mypy reads the annotations of the installed package")


if __name__ == "__main__":
    main(*sys.argv[1:])
