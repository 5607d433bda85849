"""An OpenAI-compatible server of a few lines, in this process."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers by ``script(body, attempt)``: attempt counts requests with that prompt, or those messages and seed.

    Keeps what it saw.
    """

    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.attempts: Counter = Counter()
        self.running = self.peak = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):  # a client that gave up
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "us"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["authorization"])
            server.paths.append(self.path)
            asked = str(body["prompt"] if "prompt" in body else (body["messages"], body.get("seed")))
            attempt = server.attempts[asked]
            server.attempts[asked] += 1
            server.running += 1
            server.peak = max(server.peak, server.running)
        try:
            answer = server.script(body, attempt)
        finally:
            with server.lock:
                server.running -= 1
        self.reply(**answer) if "content" in answer else self.reply(answer)

    def reply(self, content, status=200, kind="application/json", headers=None, missing=0, chunks=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        length = 10**10 if chunks else len(data) + missing
        for name, value in {"content-type": kind, "content-length": length, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)
        for chunk in chunks() if chunks else ():  # until the client goes
            self.wfile.write(chunk)
        self.close_connection = missing > 0

    def log_message(self, *arguments):
        pass


def failing(script, seconds, seen):
    """The script behind a proxy: 30 % status 500, 10 % silence of ``seconds``, 10 % cut-off bodies, else its answer.

    Drawn anew at each attempt; ``seen`` counts what was drawn.
    """

    def proxy(body, attempt):
        asked = json.dumps([body["messages"], body["seed"], attempt])
        draw = int(hashlib.sha256(asked.encode()).hexdigest()[:8], 16) % 100
        fate = "500" if draw < 30 else "hang" if draw < 40 else "cut" if draw < 50 else "answer"
        seen[fate] += 1
        if fate == "500":
            return {"content": b"<h1>Bad gateway</h1>", "status": 500, "kind": "text/html"}
        if fate == "hang":
            time.sleep(seconds)
        answer = script(body, attempt)
        return {"content": json.dumps(answer).encode()[:-20], "missing": 20} if fate == "cut" else answer

    return proxy


def chat(text, *, finish="stop", **usage):
    """What a chat model's server answers."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15} | usage
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextmanager
def serving(script):
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
