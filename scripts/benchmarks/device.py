"""Measures the block device alone, without a guest, with `benches/block.rs`."""

import json
import os
import subprocess
import tempfile

from .common import ROOT, host


def bench(args):
    print(f"{host()}; the block device alone, {args.runs} runs, medians\n")
    with tempfile.TemporaryDirectory(prefix="wisp-bench-", dir=args.directory) as directory:
        directory = os.path.abspath(directory)
        figures = os.path.join(directory, "figures.json")
        options = ["--dir", directory, "--runs", str(args.runs), "--json", figures]
        command = ["cargo", "bench", "--locked", "--bench", "block", "--", *options]
        subprocess.run(command, cwd=ROOT, check=True)
        with open(figures) as file:
            return json.load(file)
