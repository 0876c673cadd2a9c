"""Measures boots, memory and disks of Wisp, and of QEMU's microvm and Firecracker if they are installed."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from . import firecracker
from .common import (
    CMDLINE, DEADLINE, INIT, bundle, emulated_options, put_init, resident_mib_beyond_guest, started_guest, tabulate, wisp
)
from .qemu import QEMU, qemu_command

# Transferring this much takes seconds under software KVM.
BLOCK_MIB = 2
# Reads and writes each disk with dd. Prints the uptime before, between and after.
BLOCK_SCRIPT = """
    t() { read up _ < /proc/uptime; echo $up; }
    for disk in %s; do
        a=$(t); dd if=/dev/$disk of=/dev/null bs=64k 2>/dev/null; b=$(t)
        dd if=/dev/zero of=/dev/$disk bs=64k count=%d conv=fsync 2>/dev/null; c=$(t); echo disk $a $b $c
    done"""
# The same as the init of a guest without Wisp's agent.
BLOCK_INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t devtmpfs devtmpfs /dev 2> /dev/null
%s
reboot -f
"""


def bench(args):
    samples = {}
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as directory:
        env = dict(os.environ, WISP_HOME=os.path.join(directory, "home"), WISP_WARM_LIMIT="0")
        wisp(env, "run", "--", "true")  # unpack the image before the measurement
        image = bundle(env["WISP_HOME"])
        measures = [lambda: wisp_boot(env), lambda: wisp_command(env), lambda: wisp_block(env, directory)]
        for other in filter(Other.is_installed, (QEMU_MICROVM, FIRECRACKER)):
            measures += [lambda other=other: boot(other, image, directory), lambda other=other: block(other, image, directory)]
        for run in range(args.runs):
            for measure in measures:
                for name, value in measure().items():
                    samples.setdefault(name, []).append(value)
            print(f"run {run + 1} of {args.runs}", file=sys.stderr)

    figures = tabulate(samples, args.runs)
    for other in (QEMU_MICROVM, FIRECRACKER):
        if not other.is_installed():
            print(f"{other.name} is not installed and was not measured.")
    return figures


def wisp_boot(env):
    wisp(env, "run", "--", "true")
    report = json.loads(wisp(env, "timeline", "--output", "json"))
    marks = {mark["Mark"]: mark["AtNs"] for mark in report["Marks"]}
    since = lambda name: (marks[name] - marks["process-start"]) / 1e6
    return {
        "wisp: process start to first instruction, ms": since("first-instruction"),
        "wisp: process start to init, ms": since("init-started"),
        "wisp: process start to agent ready, ms": since("agent-ready"),
        "wisp: VMM memory beyond the guest's, MiB": report["VmmBytes"] / 2**20,
        "wisp: VM exits, total": sum(exit["Count"] for exit in report["Exits"]),
    }


def wisp_command(env):
    began = time.monotonic()
    wisp(env, "run", "--", "true")
    return {"wisp: `wisp run -- true`, elapsed time, ms": (time.monotonic() - began) * 1e3}


def wisp_block(env, directory):
    """Measures sequential throughput with dd in the guest."""
    raw, whole, layer = (os.path.join(directory, name) for name in ("disk.img", "disk.qcow2", "layer.qcow2"))
    with open(raw, "wb") as file:
        file.write(os.urandom(BLOCK_MIB << 20))
    disks = {"raw": raw}
    if shutil.which("qemu-img"):
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, whole], **quiet)
        base = os.path.join(directory, "base.img")
        shutil.copy(raw, base)
        subprocess.run(["qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", base, layer], **quiet)
        disks |= {"qcow2": whole, "qcow2 overlay": f"{layer},backing={base}"}
    script = block_script(len(disks))
    options = [word for disk in disks.values() for word in ("--disk", disk)]
    output = wisp(env, "run", *options, "--", "sh", "-c", script)
    return rates("wisp", disks, output)


def block_script(disks):
    return BLOCK_SCRIPT % (" ".join(f"vd{letter}" for letter in "bcd"[:disks]), BLOCK_MIB * 16)


def rates(name, disks, output):
    """Returns the rates for the lines that the script printed, one per disk."""
    lines = re.findall(rb"disk ([\d.]+) ([\d.]+) ([\d.]+)", output)
    figures = {}
    for kind, line in zip(disks, lines, strict=True):
        began, read, written = map(float, line)
        figures[f"{name}: {kind} disk, read in 64 KiB blocks, MiB/s"] = BLOCK_MIB / max(read - began, 0.01)
        figures[f"{name}: {kind} disk, write in 64 KiB blocks and flush, MiB/s"] = BLOCK_MIB / max(written - read, 0.01)
    return figures


@dataclasses.dataclass
class Other:
    """Another VMM. `command` returns its command line for an image, a directory, a root disk, a command line and disks."""

    name: str
    program: str
    command: Callable

    def is_installed(self):
        return shutil.which(self.program) is not None


def qemu(image, directory, root, cmdline, disks):
    more = [
        word
        for number, disk in enumerate(disks)
        for word in ("-drive", f"id=disk{number},file={disk},format=raw,if=none",
                     "-device", f"virtio-blk-device,drive=disk{number}")
    ]
    return qemu_command(image, root, cmdline, more)


def firecracker_command(image, directory, root, cmdline, disks):
    return firecracker.command(firecracker.write_config(directory, image, root, cmdline, disks))


QEMU_MICROVM = Other("QEMU microvm", QEMU, qemu)
FIRECRACKER = Other("Firecracker", firecracker.FIRECRACKER, firecracker_command)


def boot(other, image, directory):
    root = os.path.join(directory, "root.ext4")
    shutil.copy(os.path.join(image, "root.ext4"), root)
    with started_guest(other.command(image, directory, root, INIT + emulated_options(), ())) as (process, took):
        return {
            f"{other.name}: process start to agent ready, ms": took,
            f"{other.name}: VMM memory beyond the guest's, MiB": resident_mib_beyond_guest(process.pid),
        }


def block(other, image, directory):
    """Measures sequential throughput of a raw disk with the script that Wisp's guest runs."""
    root, disk = (os.path.join(directory, name) for name in ("root.ext4", "other.img"))
    put_init(image, root, BLOCK_INIT % block_script(1))
    with open(disk, "wb") as file:
        file.write(os.urandom(BLOCK_MIB << 20))
    command = other.command(image, directory, root, CMDLINE + emulated_options() + " init=/bench", (disk,))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(command, timeout=DEADLINE, **quiet)
    return rates(other.name, ["raw"], ended.stdout)
