"""Code shared by all benchmarks: the binary, the host, and the output of figures."""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WISP = os.path.join(ROOT, "target/release/wisp")
MEMORY_MIB = 256
SIZE = ("--vcpus", "1", "--memory", f"{MEMORY_MIB}M")
DEADLINE = 300
# Wisp's default kernel command line, for the other VMMs.
CMDLINE = "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 tsc=reliable no_timer_check noreplace-smp root=/dev/vda rw"
INIT = CMDLINE + " init=/sbin/wisp-init"
READY = b"wisp-init: ready"


def software_kvm():
    flags = re.search(r"^flags\s*:(.*)$", open("/proc/cpuinfo").read(), re.M).group(1).split()
    return not {"vmx", "svm"} & set(flags)


def use(binary):
    global WISP
    WISP = os.path.abspath(binary)


def wisp_command(*args):
    return [WISP, *args]


def wisp(env, *args, **kwargs):
    command = wisp_command(*args)
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, timeout=DEADLINE, **kwargs).stdout


def bundle(home):
    """Returns the directory of the embedded image, unpacked in this data directory."""
    images = os.path.join(home, "images")
    return next(os.path.join(images, name) for name in os.listdir(images) if name.startswith("ami-"))


def emulated_options():
    """Returns the kernel options that Wisp adds under software KVM, read from its source."""
    if not software_kvm():
        return ""
    source = open(os.path.join(ROOT, "src/vmm/boot/cmdline.rs")).read()
    tables = re.findall(r"const SOFTWARE_KVM(?:_AWARE)?: [^=]*= &\[(.*?)\];", source, re.S)
    return " " + " ".join(option for table in tables for option in re.findall(r'(?m)^[^/\n]*?"([^"]+)"', table))


@contextlib.contextmanager
def started_guest(command):
    """Starts a VMM, and kills it at the end. Yields its process and the milliseconds until the guest's agent was ready."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen = b""
    try:
        while READY not in seen:
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk or time.monotonic() - began > DEADLINE:
                raise RuntimeError(f"{command[0]}: the guest did not become ready: {seen[-500:]!r}")
            seen += chunk
        yield process, (time.monotonic() - began) * 1e3
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident_mib_beyond_guest(pid):
    """Returns the resident memory of a VMM without the mapping of the guest's memory, in MiB."""
    resident, is_guest = 0, False
    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            if addresses := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                first, end = (int(address, 16) for address in addresses.groups())
                is_guest = end - first >= MEMORY_MIB << 20
            elif line.startswith("Rss:") and not is_guest:
                resident += int(line.split()[1])
    return resident / 1024


def put_init(image, disk, script):
    """Copies the image's root file system to `disk`, with `script` as `/bench`, to be started as init."""
    init = f"{disk}.init"
    with open(init, "w") as file:
        file.write(script)
    shutil.copy(os.path.join(image, "root.ext4"), disk)
    commands = f"write {init} bench\nset_inode_field bench mode 0100755\n"
    subprocess.run(["debugfs", "-w", "-f", "-", disk], input=commands.encode(), check=True, capture_output=True)


def tabulate(samples, runs):
    print(f"{host()}; 1 vCPU, {MEMORY_MIB} MiB, {runs} runs\n")
    print(f"{'':58} {'min':>10} {'median':>10} {'max':>10}")
    figures = {}
    for name, values in samples.items():
        figures[name] = {"min": min(values), "median": statistics.median(values), "max": max(values), "samples": values}
        print(f"{name:58} {min(values):10.1f} {statistics.median(values):10.1f} {max(values):10.1f}")
    return figures


def host():
    kind = "software KVM: guest kernels are emulated" if software_kvm() else "hardware KVM"
    cpu = re.search(r"^model name\s*:\s*(.*)$", open("/proc/cpuinfo").read(), re.M).group(1)
    return f"{cpu}, {os.cpu_count()} CPUs, {kind}"
