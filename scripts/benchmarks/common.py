"""Code shared by all benchmarks: the binary, the host, and the output of figures."""

import os
import re
import statistics
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WISP = os.path.join(ROOT, "target/release/wisp")
MEMORY_MIB = 256
SIZE = ("--vcpus", "1", "--memory", f"{MEMORY_MIB}M")
DEADLINE = 300
# Wisp's default kernel command line, for the other VMMs.
CMDLINE = "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 tsc=reliable no_timer_check noreplace-smp root=/dev/vda rw"


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
