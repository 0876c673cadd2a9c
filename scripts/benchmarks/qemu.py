"""Runs QEMU's microvm with the kernel and the root file system of the embedded image."""

import os
import re
import shutil
import subprocess
import sys

from .common import CMDLINE, DEADLINE, MEMORY_MIB, emulated_options, software_kvm

QEMU = "qemu-system-x86_64"
# The MTU of Wisp's guests.
MTU = 9001
ADDRESSES = {"server": "192.0.2.4", "client": "192.0.2.5"}

# The guests' init. The kernel command line selects the role: client or server.
INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev 2> /dev/null
ip link set lo up; ip address add $bench_address/24 dev eth0; ip link set eth0 mtu %(mtu)d up
[ $bench_role = client ] || exec /net serve %(port)d
until /net round-trips %(server)s:%(port)d 1 > /dev/null 2>&1; do :; done
run=0
while [ $run -lt %(runs)d ]; do
    run=$((run + 1))
%(measures)s
done
reboot -f
"""

# Two guests with tap devices on a bridge, in namespaces that end with the script.
MACHINES = """
set -e
ip link add br0 mtu %(mtu)d type bridge && ip link set br0 up
for role in server client; do
    ip tuntap add $role mode tap vnet_hdr
    ip link set $role mtu %(mtu)d master br0 up
done
%(server)s < /dev/null > /dev/null &
exec %(client)s < /dev/null
"""


def qemu_command(image, disk, cmdline, more=()):
    cpu = "host,-arch-capabilities" if software_kvm() else "host"
    return [
        QEMU, "-M", "microvm,rtc=on,isa-serial=on,acpi=off", "-enable-kvm", "-cpu", cpu, "-m", str(MEMORY_MIB),
        "-smp", "1", "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot",
        "-kernel", os.path.join(image, "vmlinux"), "-append", cmdline,
        "-drive", f"id=root,file={disk},format=raw,if=none", "-device", "virtio-blk-device,drive=root", *more,
    ]


def between_guests(image, directory, program, port, measures, runs):
    """Yields the arguments and the output of each measurement between two guests."""
    lines = [
        f'    echo "figure {number} $(/net {words[0]} {ADDRESSES["server"]}:{port} {" ".join(words[1:])})"'
        for number, words in enumerate(measures)
    ]
    init = os.path.join(directory, "init")
    with open(init, "w") as file:
        file.write(INIT % {"mtu": MTU, "port": port, "server": ADDRESSES["server"], "runs": runs, "measures": "\n".join(lines)})
    disk = os.path.join(directory, "bench.ext4")
    shutil.copy(os.path.join(image, "root.ext4"), disk)
    put = [f"write {program} net", f"write {init} bench", "set_inode_field net mode 0100755", "set_inode_field bench mode 0100755"]
    subprocess.run(["debugfs", "-w", "-f", "-", disk], input="\n".join(put).encode(), check=True, capture_output=True)
    machines = {"mtu": MTU}
    for number, (role, address) in enumerate(ADDRESSES.items()):
        own = os.path.join(directory, f"{role}.ext4")
        shutil.copy(disk, own)
        cmdline = f"{CMDLINE}{emulated_options()} init=/bench bench_role={role} bench_address={address}"
        device = f"virtio-net-device,netdev=net,mac=06:00:00:00:00:0{number},host_mtu={MTU}"
        more = ["-netdev", f"tap,id=net,ifname={role},script=no,downscript=no,vhost=off", "-device", device]
        machines[role] = " ".join(f"'{word}'" for word in qemu_command(image, own, cmdline, more))
    # The namespace's first process becomes the client, so the server ends with the client.
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", MACHINES % machines]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE * (1 + runs))
    words = list(measures)
    found = re.findall(rb"figure (\d+) ([\d. ]+)", ended.stdout)
    if len(found) != len(words) * runs:
        sys.exit(f"QEMU's guests printed only some of the figures: {ended.stdout.decode(errors='replace')[-2000:]}")
    for number, text in found:
        yield words[int(number)], text.decode()
