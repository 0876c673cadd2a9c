"""Measures snapshots, restores, warm starts and forks of guests, and snapshots of Firecracker if it is installed."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from .common import DEADLINE, MEMORY_MIB, SIZE, bundle, host, wisp, wisp_command
from .firecracker import FIRECRACKER, Snapshots


# A hundred instances of this size fit on a small host. Forks share memory, but launched instances reserve their own.
SMALL = ("--vcpus", "1", "--memory", "128M")


def frozen(env, size):
    """Measures a warm launch, a snapshot and restores, in milliseconds."""
    timed = lambda *args: (began := time.monotonic(), wisp(env, *args), (time.monotonic() - began) * 1e3)[1:]
    marks = lambda id: {
        mark["Mark"]: mark["AtNs"]
        for mark in json.loads(wisp(env, "timeline", id, "--output", "json"))["Marks"]
    }
    output, warm = timed("launch", *size, "--hibernation")
    id = output.decode().strip()
    figures = {"warm launch to ready": warm}
    figures["restore: VMM start to resumed"] = (
        (at := marks(id))["first-instruction"] - at["vmm-start"]) / 1e6
    figures["save 256 MiB and stop (`stop --hibernate`)"] = timed("stop", id, "--hibernate")[1]
    began = time.monotonic_ns()
    wisp(env, "start", id)
    figures["restore (`start`) to resumed"] = (marks(id)["first-instruction"] - began) / 1e6
    wisp(env, "exec", id, "--", "true")
    figures["restore (`start`) to the end of the first exec"] = (time.monotonic_ns() - began) / 1e6
    wisp(env, "terminate", id)
    return figures


def forks(env, size, count):
    available = lambda: int(re.search(r"MemAvailable:\s+(\d+)", open("/proc/meminfo").read()).group(1)) / 1024
    id = wisp(env, "launch", *size).decode().strip()
    before, began = available(), time.monotonic()
    command = wisp_command("fork", id, "--count", str(count), "--overcommit")
    forked = subprocess.run(command, env=env, check=True, capture_output=True, timeout=DEADLINE)
    took = (time.monotonic() - began) * 1e3
    memory = (before - available()) / count
    private = statistics.mean(private_mib(env, fork) for fork in forked.stdout.decode().split())
    number, unit = re.search(rb"paused for ([\d.]+) (\S+?)\.?\n", forked.stderr).groups()
    pause = float(number) * {b"ms": 1, "µs".encode(): 1e-3, b"s": 1e3}[unit]
    wisp(env, "terminate", id, *forked.stdout.decode().split())
    figures = {
        f"{count} concurrent forks, until all are ready": took,
        f"{count} concurrent forks: pause of the original": pause,
        f"{count} concurrent forks: private memory per fork, MiB": private,
    }
    if count >= 10:  # with fewer forks, other activity on the host dominates
        figures[f"{count} concurrent forks: decrease of MemAvailable per fork, MiB"] = memory
    return figures


def launches(env, count):
    began = time.monotonic()
    launched = wisp(env, "launch", *SMALL, "--count", str(count), "--overcommit").decode().split()
    took = (time.monotonic() - began) * 1e3
    wisp(env, "terminate", *launched)
    return {f"{count} concurrent launches (128 MiB), until all are ready": took}


def private_mib(env, id):
    """Returns the private memory of a VMM, including guest memory."""
    pid = json.loads(wisp(env, "timeline", id, "--output", "json"))["Pid"]
    text = open(f"/proc/{pid}/smaps_rollup").read()
    return sum(int(kib) for kib in re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", text)) / 1024


def bench(args):
    samples = {}
    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as directory:
        env = dict(os.environ, WISP_HOME=os.path.join(directory, "home"), WISP_WARM_LIMIT="4096")
        for size in (SIZE, SMALL):
            wisp(env, "image", "warm", "tiny", *size)
        measures = [lambda: frozen(env, SIZE)]
        if shutil.which(FIRECRACKER):
            measures.append(Snapshots(bundle(env["WISP_HOME"]), directory).measure)
        measures *= args.runs
        measures += [lambda count=count: forks(env, SIZE, count) for count in args.many] * args.runs
        measures += [lambda count=count: launches(env, count) for count in args.many] * args.runs
        for number, measure in enumerate(measures):
            for name, value in measure().items():
                samples.setdefault(name, []).append(value)
            print(f"measurement {number + 1} of {len(measures)}", file=sys.stderr)
    figures = {}
    print(f"{host()}; 1 vCPU, {MEMORY_MIB} MiB, in ms unless noted\n")
    print(f"{'':66} {'runs':>5} {'min':>9} {'median':>9} {'p99':>9}")
    for name, values in samples.items():
        p99 = sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]
        figures[name] = {"min": min(values), "median": statistics.median(values), "p99": p99, "samples": values}
        print(f"{name:66} {len(values):5} {min(values):9.1f} {statistics.median(values):9.1f} {p99:9.1f}")
    if not shutil.which(FIRECRACKER):
        print("Firecracker is not installed and was not measured.")
    return figures
