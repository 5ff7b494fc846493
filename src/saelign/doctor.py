"""What this machine can run and what it lacks: packages, devices, room, store, hub, WordNet.

Imports nothing but the standard library before it is asked, and survives whatever is missing: it
is for installations that are not in order.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from saelign.concepts.wordnet import FOLDER_FILES, holds_wordnet, usual_places

OPTIONAL = ("datasets", "sae-lens", "wn")
"""Distributions that some feature needs and a study can do without."""

HUB_SECONDS = 2.0
"""How long the hub may take to answer."""

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""What the processors with bfloat16 arithmetic call it, x86 and ARM."""

NO_LIMIT = 1 << 60
"""Limits of memory from here on are how version 1 of cgroups says that there is none."""


def diagnose() -> dict[str, Any]:
    """What is there and what is missing; each part can be written as JSON.

    Returns:
        `saelign`, `python`, `packages`, `devices`, `memory`, `disk`, `store`, `hub`, `wordnet`;
        `features`, each with `ready`, what it `found` or what is `missing`, and what to do; and
        `ready`, whether a study can run at all. Sizes are in bytes; None is what cannot be told.
    """
    found: dict[str, Any] = {
        "saelign": version_of("saelign"),
        "python": python(),
        "packages": packages(),
        "devices": devices(),
        "memory": memory(),
        "disk": {"store": room(default_store()), "here": room(Path.cwd())},
        "store": store(default_store()),
        "hub": hub(),
        "wordnet": wordnet(),
    }
    found["features"] = features(found)
    found["ready"] = found["features"][0]["ready"]
    return found


# Packages ----------------------------------------------------------------------------------------


def version_of(distribution: str) -> str | None:
    """The installed version; None: not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> dict[str, Any]:
    """The interpreter beside what the package's metadata asks for."""
    version = platform.python_version()
    try:
        told: Any = importlib.metadata.metadata("saelign")
        needed = told.get("Requires-Python") or ""
    except importlib.metadata.PackageNotFoundError:
        needed = ""
    return {"version": version, "needed": needed, "ready": is_within(version, needed)}


def packages() -> dict[str, dict[str, Any]]:
    """Every distribution that the package's metadata asks for, and those that are optional."""
    found: dict[str, dict[str, Any]] = {}
    try:
        asked = importlib.metadata.requires("saelign") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        asked = []
    for requirement in asked:
        name, bounds, marker = parsed(requirement)
        if "extra" in marker:
            continue
        version = version_of(name)
        ready = version is not None and is_within(version, bounds)
        found[name] = {"version": version, "needed": bounds, "optional": False, "ready": ready}
    for name in OPTIONAL:
        version = version_of(name)
        found[name] = {"version": version, "needed": "", "optional": True, "ready": bool(version)}
    return found


def parsed(requirement: str) -> tuple[str, str, str]:
    """Name, bounds and marker of a requirement, as metadata writes it."""
    asked, _, marker = requirement.partition(";")
    name = re.match(r"[\w.-]+", asked.strip())
    if name is None:
        return requirement, "", marker
    bounds = re.sub(r"^\s*\[[^]]*\]", "", asked.strip()[name.end() :])
    return name[0], bounds.replace(" ", "").strip("()"), marker


def is_within(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds; believed where nothing is there to compare with."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return True
    try:
        return SpecifierSet(bounds).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


# Devices -----------------------------------------------------------------------------------------


def devices() -> dict[str, Any]:
    """What a model can run on; `torch` says why torch cannot tell, if it cannot."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": cores(),
        "threads": None,
        "bfloat16": has_bfloat16(),
        "cuda": [],
        "mps": False,
        "torch": None,
    }
    try:
        # A driver too old for the build, a broken library: torch warns or fails in many ways.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch

            found["threads"] = torch.get_num_threads()
            found["mps"] = torch.backends.mps.is_available()
            for index in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(index)
                name = torch.cuda.get_device_name(index)
                found["cuda"].append({"name": name, "total": total, "free": free})
    except Exception as error:
        found["torch"] = first_line(error)
    return found


def cores() -> int | None:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def processor(root: Path = Path("/")) -> str:
    """What the processor calls itself."""
    told = re.search(r"^model name\s*:\s*(.+)$", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    return told[1] if told else platform.processor() or platform.machine()


def has_bfloat16(root: Path = Path("/")) -> bool | None:
    """Whether the processor has bfloat16 arithmetic; None: it does not say."""
    told = re.search(r"^(?:flags|Features)\s*:(.*)$", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    return bool(BFLOAT16_FLAGS & set(told[1].split())) if told else None


# Room --------------------------------------------------------------------------------------------


def memory(root: Path = Path("/")) -> dict[str, Any]:
    """Memory in all and available; `limited` where a container holds less than the machine."""
    told = dict(re.findall(r"^(\w+):\s*(\d+) kB$", text_of(root / "proc/meminfo"), re.MULTILINE))
    total, available = (
        int(told[key]) * 1024 if key in told else None for key in ("MemTotal", "MemAvailable")
    )
    if total is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited = False
    for limit, used in limits(root):
        if total is None or limit < total:
            total, limited = limit, True
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return {"total": total, "available": available, "limited": limited}


def limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use of every cgroup with a limit that this process lies in, of either version."""
    found: list[tuple[int, int]] = []
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # Of a container the host's path may be told, while its own group is mounted at the top.
        for folder in (base / part for part in (group, *group.parents)):
            limit, used = (text_of(folder / name).strip() for name in names[:2])
            if not limit.isdigit() or int(limit) >= NO_LIMIT:
                continue
            told = re.search(rf"^{names[2]} (\d+)$", text_of(folder / "memory.stat"), re.MULTILINE)
            cached = int(told[1]) if told else 0  # files that are let go before anything fails
            found.append((int(limit), max(0, int(used or 0) - cached)))
    return found


def room(folder: Path) -> dict[str, Any]:
    """Free space where a folder is, or would be made."""
    try:
        free = shutil.disk_usage(nearest(folder)).free
    except OSError:
        free = None
    return {"folder": str(folder), "free": free, "not_writable": not_writable(folder)}


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    folder = folder.absolute()
    return next(part for part in (folder, *folder.parents) if part.exists())


def not_writable(folder: Path) -> str | None:
    """Why nothing can be written there; None: it can. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return None
    except OSError as error:
        return error.strerror or str(error)


def default_store() -> Path:
    """Where activations are kept by default: `$SAELIGN_STORE`, else a folder in a user's cache."""
    if os.environ.get("SAELIGN_STORE"):
        return Path(os.environ["SAELIGN_STORE"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "saelign" / "activations"


def store(folder: Path) -> dict[str, Any]:
    """What the store holds: layers, those of them that a run left incomplete or unreadable."""
    found: dict[str, Any] = {"layers": 0, "bytes": 0, "incomplete": 0, "unreadable": 0}
    try:
        manifests = sorted(folder.glob("*/manifest.json"))
        found["bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    except OSError:  # another run makes and removes files here
        manifests = []
    for path in manifests:
        found["layers"] += 1
        try:
            found["incomplete"] += not json.loads(path.read_bytes())["complete"]
        except (OSError, ValueError, KeyError, TypeError):
            found["unreadable"] += 1
    return found


# What comes from elsewhere -----------------------------------------------------------------------


def hub() -> dict[str, Any]:
    """Whether the Hugging Face hub answers; not asked where a variable (`offline`) says not to."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    asked = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
    ]
    reason = f"offline, as {asked[0]} asks" if asked else no_answer(endpoint)
    return {
        "endpoint": endpoint,
        "offline": asked[0] if asked else None,
        "reachable": reason is None,
        "reason": reason,
    }


def no_answer(endpoint: str, seconds: float = HUB_SECONDS) -> str | None:
    """Why an address does not answer in time; None: it does."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(None)
        except urllib.error.HTTPError as error:
            answers.append(f"answered {error.code} {error.reason}")
            error.close()
        except urllib.error.URLError as error:
            answers.append(first_line(error.reason))
        except (OSError, ValueError) as error:
            answers.append(first_line(error))

    # In a thread of its own: looking up a name obeys no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else f"no answer in {seconds:g} s"


def wordnet() -> dict[str, Any]:
    """Where WordNet's files lie, and the English lexicons that the `wn` library holds."""
    folder = next(filter(holds_wordnet, usual_places()), None)
    return {"folder": None if folder is None else str(folder), "wn": english_lexicons()}


def english_lexicons() -> list[str]:
    """The English lexicons of the `wn` library, if it is there and holds any."""
    data = Path(os.environ.get("WN_DATA_DIR") or Path.home() / ".wn_data")
    # The library would make its data base in order to say that it is empty.
    if not (data / "wn.db").is_file() or importlib.util.find_spec("wn") is None:
        return []
    try:
        wn: Any = importlib.import_module("wn")
        return [str(lexicon.specifier()) for lexicon in wn.lexicons(lang="en")]
    except Exception:  # whatever is wrong with it, there are none that could be used
        return []


# What follows ------------------------------------------------------------------------------------


def features(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each feature: ready, or what is missing and how to get it."""
    cuda, hub, wordnet = found["devices"]["cuda"], found["hub"], found["wordnet"]
    gpus = [gpu["name"] for gpu in cuda] + ["MPS"] * found["devices"]["mps"]
    sources = [wordnet["folder"]] * bool(wordnet["folder"]) + wordnet["wn"]
    sae_lens = found["packages"]["sae-lens"]["version"]
    datasets = found["packages"]["datasets"]["version"]
    reach = f"{hub['endpoint']} ({hub['reason']})"
    get_online = (
        f"unset {hub['offline']}; models in its cache can be used as it is"
        if hub["offline"]
        else "connect, or give models as folders; models in its cache can be used with "
        "HF_HUB_OFFLINE=1"
    )
    names = [] if sae_lens else ["sae-lens"]
    return [
        run_feature(found),
        feature(
            "GPU",
            found=", ".join(gpus),
            missing=[] if gpus else ["a GPU that torch can use"],
            install="models run on the CPU; on a machine with one, the torch build that "
            "https://pytorch.org/get-started/locally names",
        ),
        feature(
            "models of the hub",
            found=hub["endpoint"],
            missing=[] if hub["reachable"] else [reach],
            install=get_online,
        ),
        feature(
            "data sets by name",
            found=f"datasets {datasets}, {hub['endpoint']}",
            missing=["datasets"] * (not datasets) + ([] if hub["reachable"] else [reach]),
            install="; ".join(
                ["pip install 'saelign[datasets]'"] * (not datasets)
                + [get_online] * (not hub["reachable"])
            ),
        ),
        feature(
            "SAELens release names",
            found=f"sae-lens {sae_lens}, {hub['endpoint']}",
            missing=names + ([] if hub["reachable"] else [reach]),
            install="; ".join(
                ["pip install sae-lens"] * (not sae_lens) + [get_online] * (not hub["reachable"])
            ),
        ),
        feature(
            "WordNet concepts",
            found=", ".join(sources),
            missing=[] if sources else [f"WordNet ({', '.join(FOLDER_FILES)})"],
            install="apt install wordnet-base; or set WNHOME to where WordNet is; or pip install "
            "wn and python -m wn download oewn:2024",
        ),
        feature("browser page", found="nothing else is needed", missing=[], install=""),
    ]


def run_feature(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a study can run at all."""
    missing: list[str] = []
    install: list[str] = []
    if not found["python"]["ready"]:
        missing.append(f"Python {found['python']['needed']} (this is {found['python']['version']})")
        install.append("install saelign with a newer Python")
    lacking: list[str] = []
    for name, package in found["packages"].items():
        if package["ready"] or package["optional"]:
            continue
        has = f" (this is {package['version']})" if package["version"] else ""
        missing.append(f"{name}{package['needed']}{has}")
        lacking.append(f"'{name}{package['needed']}'")
    if lacking:
        install.append(f"pip install {' '.join(lacking)}")
    elif found["devices"]["torch"] is not None:
        missing.append(f"a torch that can be imported ({found['devices']['torch']})")
        install.append("pip install --force-reinstall torch")
    for key, advice in (("store", "set SAELIGN_STORE to another"), ("here", "choose one by --out")):
        place = found["disk"][key]
        if place["not_writable"]:
            missing.append(f"a folder to write in ({place['folder']}: {place['not_writable']})")
            install.append(advice)
    return feature(
        "run a study",
        found=f"saelign {found['saelign']}, Python {found['python']['version']}",
        missing=missing,
        install="; ".join(install),
    )


def feature(name: str, *, found: str, missing: list[str], install: str) -> dict[str, Any]:
    """A feature as `diagnose` tells of it."""
    if missing:
        return {"name": name, "ready": False, "found": "", "missing": missing, "install": install}
    return {"name": name, "ready": True, "found": found, "missing": [], "install": ""}


# As tables ---------------------------------------------------------------------------------------


def diagnosis(found: Mapping[str, Any]) -> list[Any]:
    """What `diagnose` found, for a terminal: packages, the machine, what can be done with it."""
    from rich.table import Table
    from rich.text import Text

    def table(title: str, rows: list[tuple[str, Any]]) -> list[Any]:
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, told in rows:
            grid.add_row(Text(name), told if isinstance(told, Text) else Text(told))
        return [Text(title, style="italic"), grid]

    blank, rows = Text(), []
    for one in found["features"]:
        if one["ready"]:
            rows.append((one["name"], Text.assemble(("ready", "green"), f": {one['found']}")))
        else:
            told = f": {'; '.join(one['missing'])}\n{one['install']}"
            rows.append((one["name"], Text.assemble(("missing", "yellow"), told)))
    return [
        *table("Packages", package_rows(found)),
        blank,
        *table("This machine", machine_rows(found)),
        blank,
        *table("What it can do", rows),
        blank,
        Text("a study can run" if found["ready"] else "no study can run"),
    ]


def package_rows(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Each package with its version, beside what is asked for where it is not that."""
    rows: list[tuple[str, Any]] = [("saelign", found["saelign"] or "not installed")]
    for name, package in (
        ("Python", {**found["python"], "optional": False}),
        *found["packages"].items(),
    ):
        told = package["version"] or "not installed"
        if package.get("optional"):
            told += " (optional)"
        elif not package["ready"]:
            told += f", needed: {package['needed']}"
        rows.append((name, told))
    return rows


def machine_rows(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Devices, memory, disk, store and what can be reached, in words."""
    has, memory, disk, store = (found[key] for key in ("devices", "memory", "disk", "store"))
    arithmetic = {True: "with", False: "without", None: "perhaps with"}[has["bfloat16"]]
    threads = "" if has["threads"] is None else f", torch uses {has['threads']}"
    gpus = [
        f"{gpu['name']}, {size(gpu['free'])} of {size(gpu['total'])} free" for gpu in has["cuda"]
    ]
    held = f"{store['layers']} layers, {size(store['bytes'])}"
    for key in ("incomplete", "unreadable"):
        held += f", {store[key]} {key}" if store[key] else ""
    hub, wordnet = found["hub"], found["wordnet"]
    sources = [*([wordnet["folder"]] if wordnet["folder"] else []), *wordnet["wn"]]
    return [
        ("CPU", f"{has['processor']}: {has['cores']} cores{threads}, {arithmetic} bfloat16"),
        ("CUDA", "\n".join(gpus) or "none"),
        ("MPS", "there" if has["mps"] else "none"),
        (
            "memory",
            f"{size(memory['available'])} of {size(memory['total'])} available"
            + (" (limited by a cgroup)" if memory["limited"] else ""),
        ),
        ("store", f"{place(disk['store'])}\nholds {held}"),
        ("here", place(disk["here"])),
        ("hub", f"{hub['endpoint']}: {'reachable' if hub['reachable'] else hub['reason']}"),
        ("WordNet", ", ".join(sources) or "not found"),
    ]


def place(disk: Mapping[str, Any]) -> str:
    """A folder with its free space, in words."""
    why = disk["not_writable"]
    return f"{disk['folder']}: " + (
        f"{size(disk['free'])} free, can be written"
        if why is None
        else f"cannot be written ({why})"
    )


def size(n_bytes: int | None) -> str:
    """Bytes in words."""
    if n_bytes is None:
        return "unknown"
    for unit, power in (("GB", 3), ("MB", 2), ("kB", 1)):
        if n_bytes >= 1000**power:
            return f"{n_bytes / 1000**power:.1f} {unit}"
    return f"{n_bytes} B"


def first_line(error: object) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def text_of(path: Path) -> str:
    """A file's text; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
