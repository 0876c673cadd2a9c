"""Measures boots and disks of Wisp, and boots of QEMU's microvm and Firecracker if they are installed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from .common import CMDLINE, DEADLINE, MEMORY_MIB, bundle, emulated_options, tabulate, wisp
from .qemu import QEMU, qemu_command

# Transferring this much takes seconds under software KVM.
BLOCK_MIB = 2
READY = b"wisp-init: ready"
INIT = CMDLINE + " init=/sbin/wisp-init"


def bench(args):
    samples = {}
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as directory:
        env = dict(os.environ, WISP_HOME=os.path.join(directory, "home"), WISP_WARM_LIMIT="0")
        wisp(env, "run", "--", "true")  # unpack the image before the measurement
        image = bundle(env["WISP_HOME"])
        measures = [
            lambda: wisp_boot(env), lambda: wisp_command(env), lambda: wisp_block(env, directory),
            lambda: qemu(image, directory), lambda: firecracker(image, directory),
        ]
        for run in range(args.runs):
            for measure in measures:
                for name, value in (measure() or {}).items():
                    samples.setdefault(name, []).append(value)
            print(f"run {run + 1} of {args.runs}", file=sys.stderr)

    figures = tabulate(samples, args.runs)
    for program, name in (("qemu-system-x86_64", "QEMU"), ("firecracker", "Firecracker")):
        if not shutil.which(program):
            print(f"{name} is not installed and was not measured.")
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
    script = """
        t() { read up _ < /proc/uptime; echo $up; }
        for disk in %s; do
            a=$(t); dd if=/dev/$disk of=/dev/null bs=64k 2>/dev/null; b=$(t)
            dd if=/dev/zero of=/dev/$disk bs=64k count=%d conv=fsync 2>/dev/null; c=$(t); echo $a $b $c
        done""" % (" ".join(f"vd{letter}" for letter, _ in zip("bcd", disks)), BLOCK_MIB * 16)
    options = [word for disk in disks.values() for word in ("--disk", disk)]
    lines = wisp(env, "run", *options, "--", "sh", "-c", script).split(b"\n")
    figures = {}
    for kind, line in zip(disks, lines):
        began, read, written = map(float, line.split())
        figures[f"wisp: {kind} disk, read in 64 KiB blocks, MiB/s"] = BLOCK_MIB / max(read - began, 0.01)
        figures[f"wisp: {kind} disk, write in 64 KiB blocks and flush, MiB/s"] = BLOCK_MIB / max(written - read, 0.01)
    return figures


def until_ready(command, env=None):
    """Returns the milliseconds until the guest's console reports a ready agent."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen = b""
    try:
        while READY not in seen:
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk or time.monotonic() - began > DEADLINE:
                raise RuntimeError(f"{command[0]}: the guest did not become ready: {seen[-500:]!r}")
            seen += chunk
        return (time.monotonic() - began) * 1e3
    finally:
        process.kill()
        process.wait()


def qemu(image, directory):
    if not shutil.which(QEMU):
        return None
    disk = os.path.join(directory, "qemu.ext4")
    shutil.copy(os.path.join(image, "root.ext4"), disk)
    command = qemu_command(image, disk, INIT + emulated_options())
    return {"QEMU microvm: process start to agent ready, ms": until_ready(command)}


def firecracker(image, directory):
    binary = shutil.which("firecracker")
    if not binary:
        return None
    disk = os.path.join(directory, "firecracker.ext4")
    shutil.copy(os.path.join(image, "root.ext4"), disk)
    config = os.path.join(directory, "firecracker.json")
    with open(config, "w") as file:
        json.dump({
            "boot-source": {"kernel_image_path": os.path.join(image, "vmlinux"), "boot_args": INIT + emulated_options()},
            "drives": [{"drive_id": "root", "path_on_host": disk, "is_root_device": True, "is_read_only": False}],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        }, file)
    return {"Firecracker: process start to agent ready, ms": until_ready([binary, "--no-api", "--config-file", config])}
