"""Measures traffic of guests in a VPC, with passt, over vsock, and between QEMU guests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from .common import DEADLINE, ROOT, SIZE, bundle, software_kvm, tabulate, wisp
from .qemu import QEMU, between_guests

PORT = 8080
# Transferring this much takes seconds under software KVM.
PAGE_MIB = 8
STREAM_MIB = 4 if software_kvm() else 512
# Arguments of tests/programs/net.rs, and the names of the figures that it prints.
MEASURES = {
    ("send", f"{STREAM_MIB}"): ["TCP, send, MiB/s"],
    ("receive", f"{STREAM_MIB}"): ["TCP, receive, MiB/s"],
    ("packets", "2"): ["UDP datagrams sent per second", "UDP datagrams received per second"],
    ("round-trips", "100"): ["round trip, median, ms", "round trip, p99, ms", "round trip, max, ms"],
}


def bench(args):
    samples = {}

    def note(figures):
        for name, value in figures.items():
            samples.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="wisp-bench-") as directory:
        env = dict(os.environ, WISP_HOME=os.path.join(directory, "home"), WISP_WARM_LIMIT="0")
        program = build(directory)
        outside = through_passt(env, args.runs, note)
        over_vsock(env, args.runs, note)
        in_a_vpc(env, program, args.runs, note)
        if shutil.which(QEMU):
            image = bundle(env["WISP_HOME"])
            for words, texts in between_guests(image, directory, program, PORT, MEASURES, args.runs):
                note(figures("QEMU microvm, guest to guest", words, texts))
    shown = tabulate(samples, args.runs)
    if not outside:
        print("passt was not measured: it is not installed, or this host has only loopback addresses.")
    if not shutil.which(QEMU):
        print(f"{QEMU} is not installed and was not measured.")
    return shown


def build(directory):
    program = os.path.join(directory, "net")
    source = os.path.join(ROOT, "tests/programs/net.rs")
    options = ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]
    subprocess.run(["rustc", *options, "-o", program, source], check=True)
    return program


def figures(what, words, text):
    return {f"{what}: {name}": float(value) for name, value in zip(MEASURES[words], text.split(), strict=True)}


def in_a_vpc(env, program, runs, note):
    """Measures between two guests, and between the host and a guest at its public address."""
    launched = wisp(env, "launch", *SIZE, "--network", "vpc", "--count", "2", "--overcommit").decode().split()
    try:
        server, client = launched
        for protocol in ("tcp", "udp"):
            wisp(env, "sg", "authorize", "default", "--protocol", protocol, "--port", str(PORT))
        for id in launched:
            wisp(env, "cp", program, f"{id}:/net")
        wisp(env, "exec", server, "--", "sh", "-c", f"/net serve {PORT} > /dev/null 2>&1 &")
        shown = json.loads(wisp(env, "show", server, "--output", "json"))["Reservations"][0]["Instances"][0]
        private, public = (f"{shown[kind]}:{PORT}" for kind in ("PrivateIpAddress", "PublicIpAddress"))
        for run in range(runs):
            for words in MEASURES:
                command, *more = words
                inside = wisp(env, "exec", client, "--", "/net", command, private, *more)
                note(figures("guest to guest", words, inside.decode()))
                outside = subprocess.run([program, command, public, *more], check=True, capture_output=True, timeout=DEADLINE)
                note(figures("host to guest, public address", words, outside.stdout.decode()))
            print(f"VPC: run {run + 1} of {runs}", file=sys.stderr)
    finally:
        wisp(env, "terminate", *launched)


def through_passt(env, runs, note):
    """Measures a published port and the metadata service, and downloads through passt. Returns false without the latter."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    id = wisp(env, "launch", *SIZE, "-p", f"{port}:{PORT}").decode().strip()
    try:
        exec_in = lambda script: wisp(env, "exec", id, "--", "sh", "-c", script)
        exec_in(f"mkdir /www; dd if=/dev/zero of=/www/content bs=1M count={PAGE_MIB} 2>&1; httpd -h /www -p {PORT}")
        outside = serve_outside() if shutil.which("passt") else None
        for run in range(runs):
            note(pages(port, outside, exec_in))
            print(f"passt: run {run + 1} of {runs}", file=sys.stderr)
    finally:
        wisp(env, "terminate", id)
    return outside is not None


def over_vsock(env, runs, note):
    id = wisp(env, "launch", *SIZE, "--network", "none").decode().strip()

    def rate(script, **kwargs):
        began = time.monotonic()
        wisp(env, "exec", id, "--", "sh", "-c", script, **kwargs)
        return PAGE_MIB / (time.monotonic() - began)

    try:
        for run in range(runs):
            began = time.monotonic()
            wisp(env, "exec", id, "--", "true")
            note({
                "vsock: `wisp exec` of `true`, elapsed time, ms": (time.monotonic() - began) * 1e3,
                "vsock: host to guest, MiB/s": rate("cat > /dev/null", input=bytes(PAGE_MIB << 20)),
                "vsock: guest to host, MiB/s": rate(f"head -c {PAGE_MIB << 20} /dev/zero"),
            })
            print(f"vsock: run {run + 1} of {runs}", file=sys.stderr)
    finally:
        wisp(env, "terminate", id)


def pages(port, outside, exec_in):
    figures = {}

    def fetch():
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as stream:
            stream.sendall(b"GET /content HTTP/1.0\r\n\r\n")
            return sum(iter(lambda: len(stream.recv(1 << 16)), 0))

    def timed(name, action, scale):
        began = time.monotonic()
        value = action()
        figures[name] = scale(time.monotonic() - began, value)

    rate = lambda seconds, _: PAGE_MIB / seconds
    timed("guest to host, published port, MiB/s", fetch, rate)
    if outside:
        address = f"http://{outside[0]}:{outside[1]}/"
        timed("host to guest, through passt, MiB/s", lambda: exec_in(f"wget -q -O /dev/null {address}"), rate)
    many = 20
    script = f"for i in $(seq {many}); do wget -q -O /dev/null http://169.254.169.254/latest/meta-data/ami-id; done"
    timed("wget of metadata, elapsed time, ms", lambda: exec_in(script), lambda seconds, _: seconds / many * 1e3)
    return figures


def serve_outside():
    """Starts a server of PAGE_MIB of zeros. Returns its address, or None if the host has only loopback addresses."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("198.51.100.1", 9))
            address = probe.getsockname()[0]
    except OSError:
        return None
    server = socket.create_server((address, 0))

    def serve():
        while True:
            stream, _ = server.accept()
            with stream:
                stream.recv(1 << 16)
                stream.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(PAGE_MIB << 20))

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()
