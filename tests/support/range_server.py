"""A local web server with byte ranges that counts requests and can simulate faults."""

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.common.fileio import sha256_bytes

DRIP_S = 0.05


class Handler(BaseHTTPRequestHandler):
    """Serves byte ranges of files, counts requests, and applies the faults in `server.trouble`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # saves 40 ms per request

    def log_message(self, *_):
        return None

    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        trouble = server.next_trouble(path)
        server.asked.append(path)
        server.logins.append(self.headers.get("Authorization"))
        if trouble == "drop":
            self.close_connection = True
            return
        if trouble == "stall":
            time.sleep(2)
        file = server.root / path.partition("?")[0]
        if isinstance(trouble, int):
            self.answer(trouble)
        elif trouble and trouble.startswith("to:"):
            self.answer(302, {"Location": trouble[3:]})
        elif not file.is_file():
            self.answer(404)
        else:
            self.give(file, trouble)

    def give(self, file, trouble):
        """Send a range of a file."""
        data = file.read_bytes()
        headers = self.server.says(file, data)
        if self.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag"):
            self.answer(412)
            return
        first, last = (int(number) for number in re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        part = data[first : last + 1]
        self.answer(206, headers | {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}, len(part))
        if trouble == "cut":
            part = part[: len(part) // 2]
            self.close_connection = True
        self.server.sent_bytes += len(part)  # before sending, since the client may reset the count once it has the data
        pieces = [part] if trouble != "drip" else [part[at : at + 1] for at in range(len(part))]
        try:
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(DRIP_S if trouble == "drip" else 0)
        except OSError:
            self.close_connection = True

    def answer(self, status, headers=None, length=0):
        """Send the status and headers of a response."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def says_etag(_file, data):
    return {"ETag": f'"{sha256_bytes(data)[:16]}"'}


def says_weak_etag(file, data):
    return {"ETag": "W/" + says_etag(file, data)["ETag"]}


def says_modified(file, _data):
    return {"Last-Modified": str(file.stat().st_mtime_ns)}


def says_nothing(_file, _data):
    return {}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root, handler=Handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.root, self.asked, self.sent_bytes = root, [], 0
        self.trouble, self.logins = {}, []
        self.says = says_etag
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def next_trouble(self, path):
        """Return and count down the fault of the first listed part of a path, or None."""
        for part, (kind, times) in self.trouble.items():
            if part in path and times:
                self.trouble[part] = (kind, times - 1)
                return kind
        return None

    def url(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def forget(self):
        self.asked, self.sent_bytes, self.logins = [], 0, []
