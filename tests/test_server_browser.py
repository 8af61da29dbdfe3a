"""A foreign web page in a real browser, against a server without keys: what it sends does nothing.

The page comes from another port of this machine. As 127.0.0.1 it is of the same site, as localhost of another one, and what
browsers say of a request differs.
"""
import http.server
import threading

import pytest

from inference.registry import Registry
from tests.helpers import browser
from tests.helpers.servers import Server
from tests.helpers.serving import document, make_store

HERE = "/v1/collections/default"
SEND = """
const [server, done] = [arguments[0], arguments[arguments.length - 1]];
const form = new FormData();
form.append("image", new Blob([Uint8Array.from(atob(arguments[1]), c => c.charCodeAt(0))]), "x.png");
form.append("label", "planted");
form.append("force", "true");
const told = [];
const tell = async request => told.push(await request.then(answer => answer.type, () => "failed"));
(async () => {
  await tell(fetch(server + "/references", {method: "POST", mode: "no-cors", body: form}));
  await tell(fetch(server + "/undo", {method: "POST", mode: "no-cors", body: "{}"}));  // text/plain
  await tell(fetch(server + "/undo", {method: "POST", body: "{}"}));
  await tell(fetch(server + "/types/1", {method: "DELETE"}));
  await tell(fetch(server + "/export"));
  await tell(new Promise((good, bad) => Object.assign(new Image(), {onload: () => good({type: "seen"}), onerror: bad,
                                                                    src: server + "/references/1/image"})));
  done(told);
})();
"""
SUBMIT = """
const form = document.createElement("form");
Object.assign(form, {action: arguments[0] + "/undo", method: "post", enctype: "multipart/form-data"});
document.body.append(form);
form.submit();
"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title><body>")

    def log_message(self, *_):
        pass


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_a_foreign_page_does_nothing(tmp_path):
    import base64

    from selenium.webdriver.support.wait import WebDriverWait
    with Registry.open(make_store(tmp_path)) as registry:
        registry.add(document(0), "passport", force=True)
    foreign = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    driver = browser.start(tmp_path / "profile")
    try:
        with Server(tmp_path / "store") as server:
            for name in ("127.0.0.1", "localhost"):
                driver.get(f"http://{name}:{foreign.server_port}/")
                told = driver.execute_async_script(SEND, server.url + HERE, base64.b64encode(document(7)).decode())
                assert len(told) == 6 and set(told) <= {"opaque", "failed"}, told
                driver.execute_script(SUBMIT, server.url + HERE)
                WebDriverWait(driver, 20).until(lambda driver: "foreign-origin" in driver.page_source)
                driver.get(server.url + HERE + "/types")  # a link, or an address that is typed in
                assert "passport" in driver.page_source and "planted" not in driver.page_source
        with Registry.open(tmp_path / "store") as registry:
            assert [event["what"] for event in registry.events()] == ["add"]
    finally:
        driver.quit()
        foreign.shutdown()
        foreign.server_close()
