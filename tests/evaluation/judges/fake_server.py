"""A local server that speaks like a judge's, and can be slow, fail, or talk nonsense."""

import contextlib
import http.server
import json
import threading
import time


class FakeServer:
    """Answers each question by its text: `behave(text, times asked)` says how.

    A behaviour is a reply (str), a status (int), `bytes` as the whole body, a number of seconds to
    hang (float), "drop" wrapped in a tuple to close the connection, or a header dictionary with a
    `status` in it.
    """

    def __init__(self, behave):
        self.behave = behave
        self.asked, self.headers, self.requests = {}, [], []
        self._lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextlib.contextmanager
    def running(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                outer._answer(self)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or "{}")
        text = body["messages"][0]["content"] if body else handler.path
        with self._lock:
            self.asked[text] = self.asked.get(text, 0) + 1
            times = self.asked[text]
            self.headers.append(dict(handler.headers))
            self.requests.append((handler.path, body))
        said = self.behave(text, times)
        if isinstance(said, float):
            time.sleep(said)
            said = "score: 1"
        if isinstance(said, tuple):
            handler.connection.close()
            return
        status, extra = 200, {}
        if isinstance(said, dict):
            extra = {name: value for name, value in said.items() if name != "status"}
            status, said = said["status"], b""
        if isinstance(said, int):
            status, said = said, b"the server's own words"
        if isinstance(said, str):
            said = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        with contextlib.suppress(OSError):  # the client may have gone
            handler.send_response(status)
            for name, value in extra.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(said)))
            handler.end_headers()
            handler.wfile.write(said)
