"""Serves a GGUF file with llama.cpp's own server, as the package xllamacpp carries it, until standard input ends.

Run by test_build.py with the Python of .server-venv. Prints the server's address once the model is loaded.
"""

from __future__ import annotations

import sys

import xllamacpp

CONTEXT, SLOTS = 8192, 4


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any that is free
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT * SLOTS
    params.ui = False
    threads = int(sys.argv[2])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
