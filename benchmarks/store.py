"""Speed of the built-in store in writing a log.

    python benchmarks/store.py 1e6 10e6

Every size runs in a process of its own and prints interactions, seconds, processor seconds,
interactions a second and the peak of resident memory, the imports included. The time covers
sequences and timestamps; one core is used, so on an idle machine the two kinds of seconds agree.
"""

import argparse
import resource
import subprocess
import sys
import time

from diffuserec.data import Store

MEAN_LENGTH = 10.5  # of a history, about


def measure(n: int) -> None:
    """One log of about n interactions; prints its line of the table."""
    n_users = max(1, round(n / MEAN_LENGTH))
    store = Store(n_users, n_items=max(100, n // 100), n_categories=max(1, min(500, n // 5000)))
    began, worked = time.perf_counter(), time.process_time()
    n_made = len(store.dataset().items)
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{n_made:>12,} {seconds:>9.1f} {work:>9.1f} {n_made / seconds:>12,.0f} {peak:>9.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=float, default=[1e6, 10e6])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
        return
    print(
        f"{'interactions':>12} {'seconds':>9} {'CPU s':>9} {'a second':>12} {'peak GiB':>9}",
        flush=True,
    )
    for size in arguments.sizes:
        subprocess.run([sys.executable, __file__, "--measure", str(int(size))], check=True)


if __name__ == "__main__":
    main()
