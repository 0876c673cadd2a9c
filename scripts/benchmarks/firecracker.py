"""Runs Firecracker with the kernel and the root file system of the embedded image."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time

from .common import DEADLINE, INIT, MEMORY_MIB, emulated_options, started_guest

FIRECRACKER = "firecracker"


def write_config(directory, image, root, cmdline, disks=()):
    """Writes the configuration of a microVM. Returns its path."""
    drives = [{"drive_id": "root", "path_on_host": root, "is_root_device": True, "is_read_only": False}]
    drives += [
        {"drive_id": f"disk{number}", "path_on_host": disk, "is_root_device": False, "is_read_only": False}
        for number, disk in enumerate(disks)
    ]
    config = os.path.join(directory, "firecracker.json")
    with open(config, "w") as file:
        json.dump({
            "boot-source": {"kernel_image_path": os.path.join(image, "vmlinux"), "boot_args": cmdline},
            "drives": drives,
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        }, file)
    return config


def command(config):
    return [FIRECRACKER, "--no-api", "--config-file", config]


class Connection(http.client.HTTPConnection):
    """A connection to Firecracker's API, which is HTTP over a Unix domain socket."""

    def __init__(self, path, process):
        super().__init__("localhost", timeout=DEADLINE)
        self.path = path
        self.process = process

    def connect(self):
        deadline = time.monotonic() + DEADLINE
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            try:
                return self.sock.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                self.sock.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                # Firecracker reports only by its socket that it is listening.
                time.sleep(0.0005)

    def call(self, method, path, body):
        """Sends a request. Fails unless Firecracker accepts it."""
        self.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = self.getresponse()
        text = response.read()
        if response.status // 100 != 2:
            raise RuntimeError(f"Firecracker refused {method} {path}: {response.status} {text.decode(errors='replace')}")

    def pause(self):
        self.call("PATCH", "/vm", {"state": "Paused"})

    def create_snapshot(self, directory):
        """Saves a paused VM to a directory."""
        self.call("PUT", "/snapshot/create", {"snapshot_type": "Full", **{
            key: os.path.join(directory, name) for key, name in (("snapshot_path", "state"), ("mem_file_path", "memory"))
        }})

    def load_snapshot(self, directory):
        """Loads a snapshot and resumes the VM."""
        memory = {"backend_type": "File", "backend_path": os.path.join(directory, "memory")}
        state = os.path.join(directory, "state")
        self.call("PUT", "/snapshot/load", {"snapshot_path": state, "mem_backend": memory, "resume_vm": True})


class Snapshots:
    """Saves and restores one guest. Its first snapshot is taken when its agent is ready."""

    def __init__(self, image, directory):
        self.directory = directory
        self.socket = os.path.join(directory, "firecracker.sock")
        root = os.path.join(directory, "firecracker.ext4")
        shutil.copy(os.path.join(image, "root.ext4"), root)
        self.first = self.new_directory("first")
        config = write_config(directory, image, root, INIT + emulated_options())
        with started_guest([FIRECRACKER, "--api-sock", self.socket, "--config-file", config]) as (process, _):
            with self.connection(process) as vm:
                vm.pause()
                vm.create_snapshot(self.first)

    def measure(self):
        """Restores the first snapshot in a new process, and saves the VM again. Returns both times in milliseconds."""
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # The previous process left its socket, because it was killed.
        os.unlink(self.socket)
        began = time.monotonic()
        process = subprocess.Popen([FIRECRACKER, "--api-sock", self.socket], **silent)
        try:
            with self.connection(process) as vm:
                vm.load_snapshot(self.first)
                restored = time.monotonic()
                vm.pause()
                vm.create_snapshot(self.new_directory("second"))
                saved = time.monotonic()
        finally:
            process.kill()
            process.wait()
        return {
            "Firecracker: process start to resumed": (restored - began) * 1e3,
            f"Firecracker: save {MEMORY_MIB} MiB": (saved - restored) * 1e3,
        }

    def connection(self, process):
        return contextlib.closing(Connection(self.socket, process))

    def new_directory(self, name):
        """Creates an empty directory."""
        path = os.path.join(self.directory, name)
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path)
        return path
