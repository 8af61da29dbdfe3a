"""The page in a real browser against the real server: what people do with it."""
import base64
import contextlib
import itertools
import json
import re
import time

import cv2
import numpy as np
import pytest

from inference.registry import Registry
from tests.helpers import browser
from tests.helpers.models import write_model
from tests.helpers.programs import ROOT
from tests.helpers.servers import Server
from tests.helpers.serving import request

PAGE = ROOT / "inference" / "server" / "page"
SCRIPTS = {path.name: path.read_text() for path in sorted(PAGE.glob("*.js"))}
CATALOGS = {path.stem: json.loads(path.read_text()) for path in sorted((PAGE / "locales").glob("*.json"))}
REFERENCES, PHOTOS = (ROOT / "inference" / "models" / name for name in ("registry", "photos"))
TICKET, MENU, CHEQUE = (REFERENCES / f"{name}.jpg" for name in ("ticket_1000004", "menu_1000016", "cheque_1000013"))
TICKET_PHOTO = PHOTOS / "ticket_1000004.jpg"                    # another ticket of the type, photographed
FOREIGN_PHOTO = PHOTOS / "never_registered_form_1000023.jpg"    # of a type that is in no folder of references
VIEWS = ("register", "classify", "review", "types", "types/unknown", "types/history", "threshold", "models")
NAMES = {"DocMetric", "ONNX", "onnx", "export", "docmetric", "ACME", "keep", "unknown"}  # the same in every language
CONTROLS = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "slider", "DisclosureTriangle"}  # of Chromium
PATIENCE = 30  # seconds for anything that the page is waited for

needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


# ---- what needs no browser ----

def texts(catalog):
    """{key: [text of each number]}"""
    return {key: list(text.values()) if isinstance(text, dict) else [text] for key, text in catalog.items()}


def test_every_language_has_every_text_with_the_same_values():
    chosen_from = re.search(r"LANGUAGES = \{(.*?)\}", SCRIPTS["i18n.js"])[1]
    assert set(CATALOGS) == set(re.findall(r'"?([a-zA-Z-]+)"?: "', chosen_from))
    english = texts(CATALOGS["en"])
    for language, catalog in CATALOGS.items():
        assert set(catalog) == set(english), language
        for key, versions in texts(catalog).items():
            values = {name for text in english[key] for name in re.findall(r"\{(\w+)\}", text)}
            for text in versions:
                assert text.strip(), (language, key)
                assert set(re.findall(r"\{(\w+)\}", text)) <= values, (language, key)
            assert {name for text in versions for name in re.findall(r"\{(\w+)\}", text)} == values, (language, key)


def test_every_text_that_the_code_asks_for_exists_and_every_text_is_used():
    code = "\n".join(SCRIPTS.values())
    keys, first_words = set(CATALOGS["en"]), {key.partition(".")[0] for key in CATALOGS["en"]}
    asked = set(re.findall(r'\bt\("([^"]+)"', code))
    asked |= {word for word in re.findall(r'"([a-z-]+(?:\.[a-z-]+)+)"', code)
              if word.partition(".")[0] in first_words and not word.endswith((".svg", ".js", ".json"))}
    assert asked <= keys, sorted(asked - keys)
    patterns = [re.sub(r"\\\$\\\{[^}]*\\\}", "[a-z0-9.-]+", re.escape(text)) for text in re.findall(r"`([^`\s/]+)`", code)
                if re.match(r"([a-z]+|\$\{\w+\})\.", text) and "${" in text]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in keys), pattern
    unused = {key for key in keys - asked if not any(re.fullmatch(pattern, key) for pattern in patterns)}
    assert not {key for key in unused if f'"{key}"' not in code}


def test_the_page_names_no_other_host_and_has_no_inline_code():
    for path in PAGE.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert set(re.findall(r"https?://[^\s\"'`)>]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", "\n".join(SCRIPTS.values()))


def test_every_error_of_the_server_has_a_sentence():
    code = "\n".join(path.read_text() for folder in ("server", "server/routes", "registry")
                     for path in (ROOT / "inference" / folder).glob("*.py"))
    errors = set(re.findall(r'(?:Problem\(|refuse\(|status, code = )(\d{3}), (?:code = )?"([a-z-]+)"', code))
    assert len(errors) > 10
    known = {key.removeprefix("error.") for key in CATALOGS["en"] if key.startswith("error.")}
    assert not {error for error in errors if not known & set(error)}


def test_colors_reach_the_contrast_of_wcag_aa():
    """4.5 for text, 3 for the borders of fields and for bars (WCAG 2.2, 1.4.3 and 1.4.11), by its own formula."""
    def luminance(color):
        digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
        parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    style = (PAGE / "style.css").read_text()
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        color = {name: luminance(value) for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]{3}|[0-9a-f]{6});", scheme)}
        pairs = [(text, ground, 4.5) for text in ("ink", "quiet", "accent") for ground in ("ground", "card", "sunken")]
        pairs += [(text, f"{kind}-soft", 4.5) for kind in ("good", "warn", "bad") for text in ("ink", "quiet", kind)]
        pairs += [("accent", "accent-soft", 4.5), ("on-accent", "accent", 4.5), ("card", "warn", 4.5), ("card", "bad", 4.5)]
        pairs += [("strong-line", ground, 3) for ground in ("ground", "card", "sunken")] + [("accent", "line", 3)]
        for first, second, least in pairs:
            dark, bright = sorted((color[first], color[second]))
            assert (bright + 0.05) / (dark + 0.05) >= least, (first, second)


# ---- the server and the browser ----

def serve(folder):
    """`python -m inference.server` on a new store."""
    Registry.open(folder / "store", create=True).close()
    return Server(folder / "store", "--keep-unknown", "1d")


def call(server, method, path, body=None, **more):
    """The answer's JSON; the arguments are those of `request`."""
    answer = request(server.url, method, f"/v1{path}", body, **more)
    assert answer.status < 300, answer.content
    return answer.json


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    camera = browser.camera_file(folder / "camera.mjpeg", cv2.imread(str(TICKET)))
    driver = browser.start(folder / "profile", camera)
    driver.set_script_timeout(2 * PATIENCE)
    browser.requests(driver)  # those of the browser's first tab
    yield driver
    driver.quit()


# Waits, in the browser, for the first visible element with a text in it; with `ready`, for one that is not disabled, and is
# then brought to the middle of the window. null: it has not come.
FIND = """const [selector, text, ready, patience, done] = arguments, end = Date.now() + 1000 * patience;
    (function look() {
        const found = [...document.querySelectorAll(selector)].find(one =>
            one.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && !(ready && one.disabled)
            && (text === null || one.innerText.includes(text)));
        if (!found && Date.now() < end) return setTimeout(look, 20);
        if (ready) found?.scrollIntoView({block: "center"});
        done(found ?? null);
    })()"""


FETCH = "const real = window.fetch; window.fetch = async (...request) => { %s; return real(...request); }"


# Before the page's own code: what an earlier test left is gone, and the collection is chosen.
FRESH = """const collection = %s;
    if (sessionStorage.getItem("test") !== collection) {
        localStorage.clear();
        sessionStorage.clear();
        sessionStorage.setItem("test", collection);
        sessionStorage.setItem("docmetric.collection", collection);
    }"""


class Page:
    """The page in a collection of its own."""
    visits = itertools.count()

    def __init__(self, driver, server, collection):
        self.driver, self.server, self.collection = driver, server, collection
        call(server, "POST", "/collections", {"name": collection})
        driver.get("about:blank")  # what an earlier page still says is not of this test
        self.fresh = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument",
                                            {"source": FRESH % json.dumps(collection)})
        self.allowed = set()  # HTTP statuses of errors that a test brings about
        self.hosts = {server.url}

    def api(self, method, path, body=None, **query):
        return call(self.server, method, f"/collections/{self.collection}/{path}", body, **query)

    def register(self, image, label):
        return self.api("POST", "references", image.read_bytes(), label=label, force="true")

    def open(self, view):
        self.driver.get(f"{self.server.url}/?{next(self.visits)}#{view}")  # another query: it is loaded anew
        self.find("main h1")

    def go(self, view):
        """As a click on a link does, and wait until all is there."""
        self.driver.execute_async_script("""const [view, done] = arguments;
            if (location.hash === `#${view}`) return done();
            addEventListener("hashchange", () => done(), {once: true});  // the page's own listener comes first
            location.hash = view""", view)
        self.until(lambda: self.all("html[data-requests='0'] main h1"), f"all of {view}")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def until(self, condition, what):
        """Wait until `condition()` is true, and return it; elements may be replaced meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            time.sleep(0.02)
        self.missing(what)

    def missing(self, what):
        text = self.driver.execute_script("return document.body.innerText")
        pytest.fail(f"{what}: did not come; {browser.console(self.driver)}\n{text[:1500]}")

    def find(self, selector, text=None, ready=False):
        found = self.driver.execute_async_script(FIND, selector, text, ready, PATIENCE)
        return found or self.missing(f"{selector} {text or ''}")

    def test(self, name, text=None):
        return self.find(f"[data-test={name}]", text)

    def click(self, selector, text=None):
        self.find(selector, text, ready=True).click()

    def give(self, *files):
        """Choose files, as the file dialog does."""
        self.until(lambda: self.all("[data-test=files]"), "the file field")[0].send_keys("\n".join(map(str, files)))

    def name(self, text, selector="[data-test=name]"):
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def keys(self, *keys, held=""):
        """Press keys on what has the focus, `held` meanwhile."""
        from selenium.webdriver.common.action_chains import ActionChains
        chain = ActionChains(self.driver)
        if held:
            chain = chain.key_down(held)
        chain = chain.send_keys(*keys)
        (chain.key_up(held) if held else chain).perform()

    def focused(self, script):
        """`document.activeElement` followed by `script`."""
        return self.driver.execute_script(f"return document.activeElement{script}")

    def drop(self, *files, selector="body"):
        """Drop files on an element, as an event of the browser: a driver cannot drag from outside."""
        self.driver.execute_script("""const data = new DataTransfer();
            for (const [name, bytes] of arguments[1])
              data.items.add(new File([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], name, {type: "image/jpeg"}));
            for (const kind of ["dragover", "drop"]) document.querySelector(arguments[0]).dispatchEvent(
              new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));""",
            selector, [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files])

    def labels(self):
        return sorted(one["label"] for one in self.api("GET", "types")["items"])


@pytest.fixture
def page(driver, server, request):
    """Whatever a test does: no error in the console, no violation of the content security policy, no other host."""
    page = Page(driver, server, re.sub(r"\W", "-", request.node.name.removeprefix("test_"))[:60])
    browser.console(driver)
    browser.requests(driver)
    yield page
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", page.fresh)
    said = [line for line in browser.console(driver) if not any(f"status of {status} " in line for status in page.allowed)]
    assert said == []
    asked = [url for url in browser.requests(driver) if not url.startswith(("data:", "about:"))]
    assert asked and [url for url in asked if not url.startswith(tuple(f"{host}/" for host in page.hosts))] == []


# ---- what people do ----

@needs_browser
def test_a_newcomer_registers_a_file_and_gets_right_answers(page):
    page.open("")
    page.until(lambda: len(page.all(".steps li")) == 3, "what to do first")
    page.give(TICKET)
    page.name("Train ticket")
    page.click("[data-test=save]")
    page.find(".toast", "Train ticket")
    assert page.labels() == ["Train ticket"]
    assert page.find("[data-test=made] .tile").text == "Train ticket"

    page.click("nav.views [data-view=classify]")
    page.give(TICKET_PHOTO)
    assert page.test("verdict").text == "Train ticket"
    bar = page.find(".result .bar")
    score, threshold = re.findall(r"[01]\.\d{3}", bar.get_attribute("aria-label"))
    assert 1 >= float(score) >= float(threshold)
    page.give(FOREIGN_PHOTO)
    page.test("verdict", "Not registered")
    assert page.find(".why").get_attribute("data-reason") == "below-threshold" and "Train ticket" in page.find(".why").text


@needs_browser
def test_a_photo_of_the_camera_is_registered_with_the_found_corners(page):
    page.open("register")
    page.click("[data-test=camera]")
    page.click("[data-test=shoot]")
    page.name("Seen by the camera")
    quad = drawn_quad(page)
    page.click("[data-test=save]")
    page.find(".toast", "Seen by the camera")
    reference, = page.api("GET", "references")["items"]
    width, height = browser.CAMERA_SIZE
    assert np.allclose(reference["quad"], quad, atol=0.01 * width)
    # camera_file puts the document in the middle, 90 % as high or as wide as the frame.
    shape = cv2.imread(str(TICKET)).shape
    half = 0.45 * min(width / shape[1], height / shape[0]) * np.array([shape[1], shape[0]])
    corners = np.array([width, height]) / 2 + half * [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    assert np.abs(np.array(reference["quad"]) - corners).max() < 0.03 * width
    assert page.driver.execute_script("return document.querySelectorAll('video').length") == 0  # the camera is off again


def drawn_quad(page):
    """The corners that the page shows, float64 [4, 2], once the finder's have come: pixels of the image."""
    path = page.until(lambda: page.driver.execute_script("""return document.querySelector("form[aria-busy]") ? null
        : document.querySelector(".stage .outline")?.getAttribute("d")"""), "the outline, and the end of the inspection")
    return np.array(re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", path), float).reshape(4, 2)


@needs_browser
def test_a_corner_is_moved_by_the_mouse_and_by_keys_and_registered_so(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    page.open("register")
    page.give(TICKET_PHOTO)
    before = drawn_quad(page)
    height, width = cv2.imread(str(TICKET_PHOTO)).shape[:2]
    frame = page.find(".stage .frame").rect
    corner = page.all(".corner")[2]
    ActionChains(page.driver).click_and_hold(corner).move_by_offset(-30, -20).release().perform()
    moved = drawn_quad(page)
    scale = width / frame["width"]
    start = np.clip(before[2], 0, [width, height])  # a corner outside of the image is shown, and taken, at its edge
    assert np.allclose(moved[2], start + np.array([-30, -20]) * scale, atol=1.5 * scale)
    assert np.array_equal(moved[[0, 1, 3]], before[[0, 1, 3]])

    corner = page.all(".corner")[0]
    corner.send_keys(Keys.ARROW_RIGHT, Keys.SHIFT + Keys.ARROW_DOWN)
    keyed = drawn_quad(page)
    step = max(1, round(max(width, height) / 400))
    assert np.allclose(keyed[0] - moved[0], [step, 10 * step])
    page.name("Cut")
    page.click("[data-test=save]")
    page.find(".toast", "Cut")
    assert np.allclose(page.api("GET", "references")["items"][0]["quad"], keyed, atol=0.01)


@needs_browser
def test_a_double_is_shown_beside_what_it_doubles_and_registered_only_on_purpose(page):
    page.register(TICKET, "Train ticket")
    page.open("register")
    page.give(TICKET)
    page.name("Train ticket")
    finding = page.find("[data-finding=near-duplicate]")
    assert len(finding.find_elements("css selector", "canvas")) == 2
    page.name("Something else")
    page.find("[data-finding=look-alike]", "Train ticket")
    page.click("[data-test=save]", "Register all the same")
    page.find(".toast", "Something else")
    assert page.labels() == ["Something else", "Train ticket"]


@needs_browser
def test_several_files_are_registered_under_one_name(page):
    page.open("register")
    page.give(TICKET, MENU)
    page.test("count", "2")
    page.name("Both")
    page.click("[data-test=all]")
    page.find(".drop-icon")  # nothing waits any longer
    page.test("summary", "Registered: 2; not registered: 0.")
    both, = page.api("GET", "types")["items"]
    assert (both["label"], both["references"]) == ("Both", 2)
    page.click("[data-test=undo]")  # of both
    page.until(lambda: page.labels() == [], "the undo")
    page.until(lambda: not page.all("[data-test=made]"), "nothing registered just now")


@needs_browser
def test_images_of_several_types_are_registered_one_after_the_other_and_none_is_lost(page):
    from selenium.webdriver.common.keys import Keys
    page.open("register")
    page.give(TICKET, MENU, CHEQUE)
    page.test("count", f"Image 1 of 3: {TICKET.name}")
    drawn_quad(page)
    page.keys("Train ticket", Keys.ENTER)  # the field has the focus
    page.test("count", f"Image 2 of 3: {MENU.name}")
    drawn_quad(page)
    assert page.find("[data-test=name]").get_attribute("value") == ""  # the next one is of another type, mostly
    assert page.focused(".dataset.test") == "name"
    page.click("[data-test=same]")
    assert page.find("[data-test=name]").get_attribute("value") == "Train ticket"

    page.click("[data-test=whole]")
    page.name("Menu")
    page.click("[data-test=skip]")
    page.test("count", f"Image 3 of 3: {CHEQUE.name}")
    page.keys("z", held=Keys.CONTROL)  # of the wrong click: the image is back with its name and its corners
    page.test("count", f"Image 2 of 3: {MENU.name}")
    assert page.find("[data-test=name]").get_attribute("value") == "Menu"
    height, width = cv2.imread(str(MENU)).shape[:2]
    assert np.array_equal(drawn_quad(page), [[0, 0], [width, 0], [width, height], [0, height]])
    page.find("[data-test=name]").send_keys(Keys.ENTER)
    page.test("count", f"Image 3 of 3: {CHEQUE.name}")
    page.click("[data-test=skip]")
    page.test("summary", "Registered: 2; not registered: 1.")
    assert page.labels() == ["Menu", "Train ticket"]


@needs_browser
def test_an_image_that_is_being_registered_is_not_offered_again_in_another_language(page):
    page.open("register")
    page.give(TICKET, MENU)
    page.name("Train ticket")
    drawn_quad(page)
    page.driver.execute_script("window.gate = new Promise(done => { window.open_gate = done; });"
                               + FETCH % "if (String(request[0]).includes('/references?')) await window.gate")
    page.click("[data-test=save]")
    select(page, "language", "zh-Hant")
    page.find("main h1", CATALOGS["zh-Hant"]["register.title"])
    page.test("count", TICKET.name)
    page.driver.execute_script("open_gate()")
    page.test("count", MENU.name)
    assert page.labels() == ["Train ticket"]


@needs_browser
def test_a_finding_is_overruled_only_for_the_name_that_it_was_shown_for(page):
    from selenium.webdriver.common.keys import Keys
    page.allowed.add(409)
    page.register(TICKET, "Train ticket")
    page.open("register")
    page.give(TICKET)
    page.name("Train ticket")
    page.find("[data-finding=near-duplicate]")
    page.test("save", "Register all the same")
    page.find("[data-test=name]").send_keys(" 2", Keys.ENTER)  # before the page has asked about this name
    page.find("[data-finding=look-alike]")
    assert page.labels() == ["Train ticket"]
    page.click("[data-test=save]", "Register all the same")
    page.find(".toast", "Train ticket 2")
    assert page.labels() == ["Train ticket", "Train ticket 2"]


@needs_browser
def test_many_images_are_dropped_anywhere_and_summed_up(page, tmp_path):
    page.allowed.add(415)
    page.register(TICKET, "Train ticket")
    page.open("classify")
    small = cv2.resize(cv2.imread(str(TICKET)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    paths = [tmp_path / f"scan {i:02}.jpg" for i in range(24)]
    for path in paths:
        path.write_bytes(cv2.imencode(".jpg", small)[1].tobytes())
    paths[3].write_bytes(b"no image")
    page.drop(*paths, FOREIGN_PHOTO, selector="header")
    page.find("[data-test=batch] progress")
    page.test("batch", "25 images: 23 recognized, 1 not registered, 1 failed.")
    assert len(page.all(".result")) == 25  # every one can be looked at
    assert page.all(".result .file-name")[-1].text == "scan 00.jpg"  # newest first
    page.go("types")
    page.go("classify")
    assert len(page.all(".result")) == 25
    page.test("batch", "25 images")


@needs_browser
def test_a_pasted_image_is_classified_and_registered(page, driver):
    from selenium.webdriver.common.keys import Keys
    page.register(TICKET, "Train ticket")
    driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    page.open("classify")
    copied = driver.execute_async_script("""const [bytes, done] = arguments;
        const png = new Blob([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], {type: "image/png"});
        const items = [new ClipboardItem({"image/png": png})];
        navigator.clipboard.write(items).then(() => done(""), error => done(String(error)));""",
        base64.b64encode(cv2.imencode(".png", cv2.imread(str(TICKET_PHOTO)))[1].tobytes()).decode())
    assert copied == ""
    page.keys("v", held=Keys.CONTROL)
    page.test("verdict", "Train ticket")
    page.go("register")
    page.keys("v", held=Keys.CONTROL)
    drawn_quad(page)
    page.name("Pasted")
    page.find("[data-finding=look-alike]", "Train ticket")
    page.click("[data-test=save]", "Register all the same")
    page.find(".toast", "Pasted")
    assert "Pasted" in page.labels()


@needs_browser
def test_the_camera_is_released_when_the_view_is_left_or_escape_is_pressed(page, driver):
    from selenium.webdriver.common.keys import Keys
    page.open("register")
    driver.execute_script("""window.streams = [];
        const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async wanted => {
            const stream = await open(wanted);
            streams.push(stream);
            await window.held;
            return stream;
        }""")
    states = lambda: driver.execute_script("return streams.flatMap(one => one.getTracks().map(track => track.readyState))")
    page.click("[data-test=camera]")
    page.until(lambda: page.test("shoot").is_enabled(), "the camera")
    page.keys(Keys.ESCAPE)
    assert states() == ["ended"] and page.focused(".dataset.test") == "camera"
    page.click("[data-test=camera]")
    page.until(lambda: page.test("shoot").is_enabled(), "the camera")
    page.go("types")
    assert states() == ["ended", "ended"]
    page.go("register")
    driver.execute_script("window.held = new Promise(done => { window.allow = done; })")
    page.click("[data-test=camera]")  # the reader is asked, and leaves the view instead
    page.until(lambda: len(states()) == 3, "the question")
    page.go("types")
    driver.execute_script("allow()")
    page.until(lambda: states() == ["ended"] * 3, "the release")


@needs_browser
def test_wrong_remembers_an_unknown_and_its_like_is_rejected(page):
    page.register(TICKET, "Train ticket")
    page.open("classify")
    page.give(TICKET_PHOTO)
    page.test("verdict", "Train ticket")
    page.click("[data-test=wrong]")
    page.click("[data-test=wrong-unknown]")
    page.test("verdict", "Not registered")
    assert page.find(".why").get_attribute("data-reason") == "known-unknown"
    assert len(page.api("GET", "references", kind="unknown")["items"]) == 1
    decision = next(one for one in page.api("GET", "decisions")["items"] if one["label"] == "Train ticket")
    assert decision["correct"] is False and decision["right"] is None
    page.click(".toast button", "Undo")
    page.test("verdict", "Train ticket")


@needs_browser
def test_wrong_registers_under_the_right_type_and_right_is_noted(page):
    page.register(MENU, "Menu")
    page.open("classify")
    page.give(TICKET_PHOTO)
    page.test("verdict", "Not registered")
    page.click("[data-test=wrong]")
    page.name("Train ticket", ".mend [data-test=name]")
    page.click("[data-test=wrong-name]")
    page.test("verdict", "Train ticket")
    assert page.labels() == ["Menu", "Train ticket"]
    page.give(MENU)
    page.test("verdict", "Menu")
    page.click("[data-test=right]")
    page.find(".result", "Noted as right")
    told = {one["label"]: (one["correct"], one["right"]) for one in page.api("GET", "decisions")["items"]}
    assert told[None] == (False, "Train ticket") and told["Menu"] == (True, "Menu")


@needs_browser
def test_the_slider_replays_the_stored_decisions(page):
    from selenium.webdriver.common.keys import Keys
    page.register(TICKET, "Train ticket")
    page.register(CHEQUE, "Cheque")
    for path in (TICKET_PHOTO, FOREIGN_PHOTO):
        page.api("POST", "classify", path.read_bytes())
    used = page.api("GET", "threshold")["threshold"]
    page.open("threshold")
    assert f"{used:.3f}" in page.test("used").text and "automatically" in page.test("used").text
    counts = lambda: [int(page.test(name).text) for name in ("labeled", "rejected", "changed")]
    assert page.until(lambda: counts() == [1, 1, 0], "the replay of the threshold in use")
    page.test("slider").send_keys(Keys.END)  # 1.0: only the very same image would get a label
    page.until(lambda: counts() == [0, 2, 1], "the replay of 1.0")
    page.test("slider").send_keys(Keys.HOME)  # 0.5: nearly any image gets a label
    page.until(lambda: counts() == [2, 0, 1], "the replay of 0.5")
    page.test("slider").send_keys(Keys.ARROW_RIGHT)
    page.click("[data-test=use]", "0.501")
    page.find(".toast", "0.501")
    assert page.api("GET", "threshold")["threshold"] == 0.501
    page.test("used", "set by hand")
    page.click("[data-test=suggest]")
    assert float(page.test("value").text) == pytest.approx(float(page.test("suggested").text), abs=0.0011)
    page.click("[data-test=automatic]")
    page.test("used", "automatically")
    assert page.api("GET", "threshold")["threshold"] == pytest.approx(used)


@needs_browser
def test_a_group_of_unknowns_is_named_at_once(page):
    page.register(MENU, "Menu")
    photo = cv2.imread(str(TICKET_PHOTO))
    for seed in range(4):
        noisy = np.clip(photo + np.random.default_rng(seed).normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
        page.api("POST", "classify", cv2.imencode(".jpg", noisy)[1].tobytes())
    page.open("review")
    page.find(".cluster h2", "4 look alike")
    assert page.find("nav.views .badge").text == "1"
    page.test("effect", "4")
    page.click(".pick input")  # one of them does not belong to them, says the reader
    page.find(".cluster h2", "3 look alike")
    page.name("Train ticket")
    page.click("[data-test=name-cluster]")
    page.find(".toast", "Train ticket")
    assert page.labels() == ["Menu", "Train ticket"]
    page.find(".empty")
    assert page.api("POST", "classify", TICKET_PHOTO.read_bytes())["results"][0]["label"] == "Train ticket"


@needs_browser
def test_naming_one_group_leaves_what_was_typed_for_another(page):
    page.register(MENU, "Menu")
    for path in (TICKET_PHOTO, FOREIGN_PHOTO):
        page.api("POST", "classify", path.read_bytes())
    page.open("review")
    page.until(lambda: len(page.all(".cluster [data-test=name]")) == 2, "two groups")
    first, second = page.all(".cluster [data-test=name]")
    second.send_keys("Typed before")
    first.send_keys("First")
    page.click(".cluster [data-test=name-cluster]")
    page.find(".toast", "First")
    page.until(lambda: [one.get_attribute("value") for one in page.all(".cluster [data-test=name]")] == ["Typed before"],
               "the other group with its name")
    page.click("[data-test=undo]")
    page.find(".toast", "do not come back")
    assert page.labels() == ["Menu"]


@needs_browser
def test_many_types_come_in_pages_with_their_names_whole(page):
    names = [f"統一發票（三聯式）{i}" if i % 2 else f"Application for a permit of residence, supplement {i}"
             for i in range(61)]
    image = cv2.imencode(".jpg", cv2.resize(cv2.imread(str(TICKET)), (120, 80)))[1].tobytes()
    for name in names:
        page.api("POST", "references", image, label=name, force="true")
    page.open("types")
    page.until(lambda: len(page.all("[data-test=types] .tile")) == 60, "the first page")
    page.click("[data-test=more]")
    page.until(lambda: len(page.all("[data-test=types] .tile")) == 61, "the second page")
    assert not [one for one in page.all("[data-test=more]") if one.is_displayed()]
    cut = "return [...document.querySelectorAll('.tile')].filter(one => one.scrollWidth > one.clientWidth).length"
    assert page.driver.execute_script(cut) == 0
    page.go(f"types/{page.api('GET', 'types', text=names[1])['items'][0]['type']}")
    page.find("details summary", "57 more").click()  # all look alike: three are named, the others on demand
    assert len([one for one in page.all(".note.warn li") if one.is_displayed()]) == 60


@needs_browser
def test_types_are_searched_renamed_merged_removed_and_brought_back(page):
    page.register(TICKET, "Train ticket")
    page.register(MENU, "Menu")
    page.open("types")
    page.until(lambda: len(page.all("[data-test=types] .tile")) == 2, "two types")
    page.test("search").send_keys("tick")
    page.until(lambda: len(page.all("[data-test=types] .tile")) == 1, "one type")
    page.click("[data-test=types] .tile")

    page.click("[data-test=rename]")
    page.name("Boarding pass", "dialog [data-test=name]")
    page.click("dialog .main")
    page.test("type-name", "Boarding pass")
    assert page.labels() == ["Boarding pass", "Menu"]

    page.allowed.add(409)
    page.click("[data-test=rename]")
    page.name("Menu", "dialog [data-test=name]")
    page.click("dialog .main")
    page.click("dialog .main", "Merge")  # the name is taken: the page offers to merge
    page.test("type-name", "Menu")
    page.until(lambda: len(page.all("[data-test=references] .tile")) == 2, "the references of both")
    assert page.labels() == ["Menu"]

    page.allowed.add(404)
    page.click("[data-test=merge]")
    page.name("Nothing", "dialog [data-test=name]")
    page.click("dialog .main")
    page.find(".toast.bad", "Nothing")

    page.click("[data-test=remove]")
    page.find(".toast", "Menu")
    page.until(lambda: page.labels() == [], "the removal")
    page.find(".toast", "Menu was removed").find_element("xpath", ".//button[contains(., 'Undo')]").click()
    page.until(lambda: page.labels() == ["Menu"], "the undo")

    page.open("types/history")
    page.click("[data-test=events] li:nth-child(3) button", "Undo")  # of the merge; the removal and its undo came later
    page.until(lambda: page.labels() == ["Boarding pass", "Menu"], "the undo of the merge")


@needs_browser
def test_a_language_that_does_not_come_is_not_shown_as_chosen(page):
    page.open("types")
    page.driver.execute_script(FETCH % "if (String(request[0]).includes('/locales/')) throw new TypeError('refused')")
    select(page, "language", "zh-Hant")
    page.find(".toast.bad")
    assert page.test("language").get_property("value") == "en" and page.find("main h1").text == CATALOGS["en"]["types.title"]


@needs_browser
def test_the_language_is_the_browsers_or_the_chosen_one_and_leaves_nothing_untranslated(page):
    page.register(TICKET, "A1")
    page.api("POST", "classify", FOREIGN_PHOTO.read_bytes())
    for language in ("zh-Hant", "zh-Hans"):
        page.open("register")
        select(page, "language", language)
        page.find("main h1", CATALOGS[language]["register.title"])
        page.driver.refresh()  # it is remembered
        page.find("main h1", CATALOGS[language]["register.title"])
        assert page.find("html").get_attribute("lang") == language
        for view in VIEWS:
            page.go(view)
            text = page.driver.execute_script("""const body = document.body.cloneNode(true);
                for (const foreign of body.querySelectorAll("select, code")) foreign.remove();  // languages, hashes
                return body.textContent""")
            assert set(re.findall("[A-Za-z]{3,}", text)) <= NAMES, (language, view)


def select(page, name, value):
    from selenium.webdriver.support.select import Select
    Select(page.test(name)).select_by_value(value)


@needs_browser
def test_a_new_collection_is_made_and_has_types_of_its_own(page):
    page.register(TICKET, "Train ticket")
    page.open("types")
    page.find("[data-test=types] .tile")
    select(page, "collection", "+")
    other = f"{page.collection}-2"
    page.name(other, "[data-test=collection-name]")
    page.click("dialog .main")
    page.find(".empty")
    select(page, "collection", page.collection)
    page.find("[data-test=types] .tile", "Train ticket")


@needs_browser
def test_a_model_is_added_compared_activated_and_taken_back(page, tmp_path):
    for path in (TICKET, TICKET_PHOTO, MENU):
        page.register(path, path.stem.split("_")[0])
    model = write_model(tmp_path / "thumbnail.onnx")
    page.open("models")
    page.all("[data-test=model-file]")[0].send_keys(str(model))
    page.click("[data-test=model-send]")
    page.find("[data-state=ready]", "thumbnail.onnx")
    page.click("[data-test=report-button]")
    page.find("[data-test=report] table")
    page.click("[data-test=activate]")
    page.click("dialog .main")
    page.find("[data-state=active]", "thumbnail.onnx")
    page.click("[data-test=back]")
    page.click("dialog .main")
    page.find("[data-state=active]", "docmetric.onnx")
    assert {one["name"]: one["state"] for one in page.api("GET", "models")["items"]} == {
        "docmetric.onnx": "active", "thumbnail.onnx": "retired"}


@needs_browser
def test_every_view_fits_a_phone_and_every_control_has_a_name(page):
    made = page.register(TICKET, "A type with a name that is rather long, such as people give them in practice")
    page.api("POST", "classify", FOREIGN_PHOTO.read_bytes())
    metrics = dict(width=360, height=740, deviceScaleFactor=1, mobile=True)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open("")
    try:
        for view in (*VIEWS, f"types/{made['type']}"):
            page.go(view)
            if view == "register":
                page.give(TICKET_PHOTO)
                drawn_quad(page)
            assert page.driver.execute_script("return document.documentElement.scrollWidth") <= metrics["width"], view
            spoken = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
            controls = [one for one in spoken if one.get("role", {}).get("value") in CONTROLS]
            assert len(controls) > len(VIEWS) and all(one["name"]["value"] for one in controls), view
            small = page.driver.execute_script("""
                return [...document.querySelectorAll("nav.views a, main button:not(.link)")]
                    .map(one => [one.textContent, one.offsetWidth, one.offsetHeight])
                    .filter(([, width, height]) => width && Math.min(width, height) < 32)""")
            assert not small, (view, small)  # a finger must hit it
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_what_is_no_image_is_refused_in_plain_words(page, tmp_path):
    page.allowed.add(415)
    (tmp_path / "notes.jpg").write_bytes(b"no image at all")
    page.open("classify")
    page.give(tmp_path / "notes.jpg")
    page.find(".result [role=alert]", "no image that can be read")
    said = page.all(".result details.detail p")[0]
    assert not said.is_displayed()  # the server's own English words stand behind it
    page.click(".result details.detail summary")
    assert said.is_displayed() and said.text
    assert not page.all("[data-test=again]")  # the same file would be refused again


@needs_browser
def test_a_slow_a_busy_and_a_silent_server(page, driver):
    page.register(TICKET, "Train ticket")
    page.open("register")
    driver.execute_script("window.gate = new Promise(done => { window.open_gate = done; });" + FETCH % "await window.gate")
    driver.execute_script("location.hash = 'types'")
    page.until(lambda: page.find(".loading").value_of_css_property("opacity") == "1", "that it loads")
    driver.execute_script("open_gate()")
    page.find("[data-test=types] .tile", "Train ticket")
    assert not page.all(".loading")

    page.open("register")
    driver.execute_script("window.down = true;" + FETCH % "if (window.down) throw new TypeError('refused')")
    driver.execute_script("location.hash = 'types'")
    page.find("[role=alert]", "The server does not answer")
    driver.execute_script("window.down = false")
    page.click("[data-test=again]")
    page.find("[data-test=types] .tile", "Train ticket")
    assert not page.all("[role=alert]")

    page.open("classify")
    driver.execute_script("window.refusals = 2;" + FETCH % """if (refusals-- > 0) return new Response(
        JSON.stringify({status: 503, code: "overloaded"}), {status: 503, headers: {"Retry-After": "0.1"}})""")
    page.give(TICKET_PHOTO)
    page.test("verdict", "Train ticket")  # it was asked again, as long as the server said


@needs_browser
def test_the_page_is_used_by_keys_alone(page):
    from selenium.webdriver.common.keys import Keys
    page.register(TICKET, "Train ticket")
    page.open("types")

    def tab(selector):
        """Press Tab until an element of this kind, which is there, has the focus."""
        page.find(selector)
        for _ in range(20):
            page.keys(Keys.TAB)
            if page.focused(f".matches('{selector}')"):
                return
        raise AssertionError(f"{selector} is out of reach")

    tab("a.tile")
    page.keys(Keys.ENTER)
    tab("[data-test=rename]")
    page.keys(Keys.ENTER)
    page.find("dialog")
    assert page.focused(".dataset.test") == "name"
    page.keys(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog") and page.focused(".dataset.test") == "rename", "the focus back at the button")
    page.keys(Keys.ENTER)
    page.find("dialog")
    page.keys(" X", Keys.ENTER)
    page.test("type-name", "Train ticket X")
    page.until(lambda: not page.all("[aria-busy]"), "the end")
    tab(".type-head button")  # the focus was not lost: it goes on near the place of the button
    page.keys("z", held=Keys.CONTROL)
    page.test("type-name", "Train ticket")
    page.until(lambda: page.labels() == ["Train ticket"], "the undo")


@needs_browser
def test_a_server_with_keys_asks_for_one_once(page, driver, tmp_path):
    page.allowed.add(401)
    with serve(tmp_path) as server:
        page.hosts.add(server.url)
        key = call(server, "POST", "/keys", {"name": "page", "scopes": ["classify", "read", "write", "admin"]})["key"]
        driver.get(f"{server.url}/#types")
        driver.refresh()
        page.name("dm_1_wrong", "[data-test=key]")
        page.click("dialog .main")
        page.find("dialog [role=alert]")
        page.name(key, "[data-test=key]")
        page.click("dialog .main")
        page.find(".empty")
        driver.refresh()
        page.find(".empty")  # it is kept for the tab
        assert not page.all("dialog")
        assert driver.execute_script("return JSON.stringify(localStorage)").find(key) == -1
        call(server, "POST", "/collections/default/references", TICKET.read_bytes(), key=key, label="Locked", force="true")
        driver.refresh()
        page.find("[data-test=types] .tile", "Locked")
        canvas = "[data-test=types] canvas"
        page.until(lambda: page.all(canvas)[0].get_property("width") > 4, "an image, which was asked for with the key")
