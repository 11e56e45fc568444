"""What the package sets for OpenMP when it is imported: only what nobody has set."""

import os
import subprocess
import sys

import pytest

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["1000", None]),
        ({"GOMP_SPINCOUNT": "7"}, ["7", None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE"]),
    ],
)
def test_waiting_is_set_before_torch_unless_the_user_has_set_it(given, expected) -> None:
    # an importer of torch that stops the import right there, which saves its seconds
    program = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            print([os.environ.get(name) for name in {_NAMES!r}])\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import diffuserec\ndiffuserec.SequenceDataset\n"
    )
    environment = {name: text for name, text in os.environ.items() if name not in _NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | given,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.strip() == str(expected)
