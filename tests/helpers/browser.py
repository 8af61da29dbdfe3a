"""A headless Chromium for tests of the page: its console, its requests, and a camera that shows an image."""
import json
import os
import shutil
from pathlib import Path

import cv2

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CAMERA_SIZE = 1280, 720  # pixels of the camera's frames


def missing() -> str:
    """Why no browser can be started here; "" where one can."""
    if not CHROMIUM or not DRIVER:
        return "chromium and chromedriver are not installed (apt install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return ""


def camera_file(path: Path, image) -> Path:
    """A video that shows one image (uint8 BGR), for `start(camera=...)`: each frame is a JPEG."""
    width, height = CAMERA_SIZE
    scale = min(width / image.shape[1], height / image.shape[0]) * 0.9
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    frame = cv2.copyMakeBorder(small, top, height - top - small.shape[0], left, width - left - small.shape[1],
                               cv2.BORDER_CONSTANT, value=(64, 74, 58))
    path.write_bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() * 4)
    return path


def start(profile: Path, camera: Path | None = None, language: str = "en-US", width: int = 1280, height: int = 900):
    """A Selenium driver. profile: an empty folder for the browser's own files. camera: of `camera_file`."""
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--force-device-scale-factor=1",
                 "--force-prefers-reduced-motion", f"--user-data-dir={profile}", f"--window-size={width},{height}",
                 f"--lang={language}"]
    if camera:
        arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                      f"--use-file-for-fake-video-capture={camera}"]
    for argument in arguments:
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ.setdefault("NO_PROXY", "localhost,127.0.0.1")  # of the connection to chromedriver
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def console(driver) -> list[str]:
    """The console's errors and warnings since the last call, violations of the content security policy among them."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(driver) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
