"""All speed benchmarks, one after another; results into docs/lab/results/, tables into the docs.

    python benchmarks/run_all.py [LOG] [--users 2500] [--threads 1] [--no-peer] [--out DIR]

LOG has one line a user, ``user item item …``. Without one, a log of the built-in store in the size
of Amazon Beauty is made, or of fewer users, and the results go to a folder of their own instead of
the docs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import diffuserec as dr

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, nargs="?")
    parser.add_argument("--users", type=int, default=22_363, help="of the log that is made")
    parser.add_argument("--threads", type=int, default=2, help="of the epochs, ours and others'")
    parser.add_argument("--no-peer", action="store_true", help="leave other libraries out")
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log, out = given.log, given.out or HERE.parent / "docs" / "lab" / "results"
        if log is None:
            log = Path(folder) / f"store_{given.users}.txt"
            dataset = dr.Store(n_users=given.users, n_items=12_101, seed=0).dataset()
            dr.from_dataset(dataset).write(log, "sequences")
            out = given.out or Path("runs") / "bench"
        out.mkdir(parents=True, exist_ok=True)
        peer, threads = ["--no-peer"] * given.no_peer, ["--threads", given.threads]
        commands = [
            ["sasrec_epoch.py", log, *threads, *peer, "--json", out / "sasrec_epoch.json"],
            ["arithmetic.py", log, *threads, "--json", out / "arithmetic.json"],
            ["forms_speed.py", log, "--json", out / "forms_speed.json"],
            ["diffrec_speed.py", log, "--json", out / "diffrec_speed.json"],
            ["contrastive_speed.py", log, "--json", out / "contrastive_speed.json"],
            ["prepare.py", "--json", out / "prepare.json"],
            ["catalog.py", "--json", out / "catalog.json"],
            ["processes.py", "--json", out / "processes.json"],
            ["store.py"],
            [
                "diffuasr.py",
                log,
                "--only",
                "everyone",
                "--threads",
                "2",
                "--set",
                "pretrain_epochs=1",
                "--set",
                "epochs=1",
                "--json",
                out / "diffuasr_speed.json",
            ],
        ]
        for script, *words in commands:
            command = [sys.executable, str(HERE / script), *(str(word) for word in words)]
            print(f"\n$ python benchmarks/{script} {' '.join(command[2:])}", flush=True)
            subprocess.run(command, check=True)
    subprocess.run([sys.executable, str(HERE / "tables.py")], check=True)


if __name__ == "__main__":
    main()
