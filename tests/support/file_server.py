"""A server of files on this machine that can be told to misbehave, and the Hub with one repository on it."""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hub_files import COMMIT

CONTENT = bytes(range(256)) * 20_000  # 5.12 MB: several blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server of `files` (path -> bytes) that can be told to misbehave; `asked` are the requests it got."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = {"/file.pt": CONTENT}, []
        self.drops, self.ranges, self.kind, self.tag = [], True, "application/octet-stream", '"1"'
        self.failures = []  # statuses to answer with before anything is served
        self.lengths = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        server, content = self.server, self.server.files.get(self.path)
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        if server.failures or content is None:
            status = server.failures.pop(0) if server.failures else 404
            self.send_response(status)
            if status == 404 and "/resolve/" in self.path:  # as the Hub says that a repository has no such file
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin, wanted = 0, self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if begin >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Content-Type", server.kind)
        if "/resolve/" in self.path:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(server.files.get("digest of", content)).hexdigest()}"')
        elif server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        if body:
            end = min(len(content), begin + server.drops.pop(0)) if server.drops else len(content)
            self.wfile.write(content[begin:end])
        self.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    """Serve until the block ends."""
    served = Server()
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()
