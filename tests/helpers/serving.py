"""A store, and the HTTP API over it in this process, on a real socket."""
import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlencode, urlsplit

import cv2
import uvicorn

from inference.registry import Registry
from inference.server.app import create_app
from inference.server.settings import Settings
from tests.helpers.models import blocks, write_model


def make_store(folder, **settings):
    """A store with a tiny model and the empty collection `default`, in `folder`; returns its path."""
    Registry.open(folder / "store", create=True, model=write_model(folder / "model.onnx"),
                  **{"find": "never"} | settings).close()
    return folder / "store"


def document(seed, size=480) -> bytes:
    """A sharp picture of a type of its own, as PNG."""
    return cv2.imencode(".png", blocks(seed, size))[1].tobytes()


@contextlib.contextmanager
def serving(store, **settings):
    """The address of a server for the store, as long as the block lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(str(store), **settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.content = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.content)


def request(url, method, path, body=None, *, key=None, headers=(), **query) -> Answer:
    """One request over a connection of its own. body: bytes, or what is sent as JSON."""
    headers = dict(headers)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if body is not None and not isinstance(body, bytes):
        body, headers["Content-Type"] = json.dumps(body), "application/json"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path + ("?" + urlencode(query) if query else ""), body, headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()
