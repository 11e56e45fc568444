"""What an installation has and what is wrong with it, for people who ask for help."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from diffuserec.errors import did_you_mean

_GROUPS = ("recommender", "augmenter", "encoder", "loss", "metric", "format")


@dataclass(frozen=True)
class Finding:
    """One line about an installation.

    Attributes:
        name: of what was looked at.
        value: what was found.
        advice: what to do; empty if nothing is wrong.
    """

    name: str
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at Python, packages, extras, processor, devices, disk and parts of other packages."""
    return [
        Finding("diffuserec", version("diffuserec")),
        Finding("Python", f"{platform.python_version()} at {sys.executable}"),
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        *_packages(),
        *_devices(),
        _threads(),
        _disk(),
        *_parts(),
    ]


def _packages() -> list[Finding]:
    """Each package that is required, and each extra: installed whole, in part or not."""
    found, extras = [], dict[str, list[Finding]]()
    for text in requires("diffuserec") or []:
        needed = Requirement(text)
        extra = _extra_of(needed)
        if extra == "dev" or (extra is None and needed.marker and not needed.marker.evaluate()):
            continue
        finding = _package(needed, extra)
        if extra is None:
            found.append(finding)
        else:
            extras.setdefault(extra, []).append(finding)
    for extra, findings in extras.items():
        names = ", ".join(f"{f.name} {f.value}" for f in findings)
        wrong = " ".join(f.advice for f in findings if f.advice)
        if all(finding.value == "missing" for finding in findings):
            names, wrong = f"not installed: pip install 'diffuserec[{extra}]'", ""
        found.append(Finding(f"extra {extra}", names, wrong))
    return found


def _extra_of(needed: Requirement) -> str | None:
    """The extra that a requirement belongs to; None if it is always required."""
    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
        return None
    text = str(needed.marker)
    return text.partition("extra == ")[2].strip("\"' )") or None


def _package(needed: Requirement, extra: str | None) -> Finding:
    wanted = f"diffuserec[{extra}]" if extra else "diffuserec"
    try:
        there = version(needed.name)
    except PackageNotFoundError:
        return Finding(needed.name, "missing", f"pip install '{wanted}'")
    if needed.specifier.contains(there, prereleases=True):
        return Finding(needed.name, there)
    return Finding(needed.name, there, f"{needed} is needed: pip install '{wanted}'")


def _devices() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the system may be missing
        return [Finding("torch", "cannot be imported", f"{error}: install it again")]
    found = [Finding("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch")]
    memory = memory_there()
    if memory is not None:
        found.append(Finding("memory", f"{memory / 2**30:.0f} GiB"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            size = f"{device.total_memory / 2**30:.0f} GiB"
            found.append(Finding(f"GPU {index}", f"{device.name}, {size}"))
    elif torch.version.cuda:
        advice = (
            "this build of torch is for CUDA and sees no GPU: the driver is missing or too old; "
            "on a machine without one, a build for the CPU is smaller"
        )
        found.append(Finding("GPU", "none", advice if shutil.which("nvidia-smi") else ""))
    else:
        found.append(Finding("GPU", "none: this build of torch is for the CPU"))
    return found


def memory_there() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _threads() -> Finding:
    cores = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    advice = ""
    if busy > cores and asked != "1":
        advice = (
            f"other programs keep the {cores} cores busy ({busy:.1f} on average): threads that "
            "wait for each other become many times slower; set OMP_NUM_THREADS=1"
        )
    return Finding("OMP_NUM_THREADS", asked or "not set", advice)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "" if free > 1 else "make room: runs and prepared logs need it"
    return Finding("free disk here", f"{free:.0f} GiB", advice)


def _parts() -> list[Finding]:
    """Parts that other packages declare, each imported."""
    known = {f"diffuserec.{group}{'es' if group.endswith('s') else 's'}" for group in _GROUPS}
    found = []
    groups = [group for group in entry_points().groups if group.startswith("diffuserec.")]
    for point in [point for group in sorted(groups) for point in entry_points(group=group)]:
        name = f"{point.group.removeprefix('diffuserec.')}: {point.name}"
        if point.group not in known:
            advice = f"there is no such kind of part{did_you_mean(point.group, sorted(known))}"
            found.append(Finding(name, point.value, advice))
            continue
        try:
            point.load()
        except Exception as error:  # code of another package may raise anything
            advice = f"cannot be imported ({error}): mend or uninstall that package"
            found.append(Finding(name, point.value, advice))
        else:
            found.append(Finding(name, point.value))
    return found
