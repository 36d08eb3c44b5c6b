# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that uses pages as a person would."""

from __future__ import annotations

import importlib.util
import io
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1120,900",
)
TIMEOUT_S = 90.0


def installed() -> tuple[str, str] | None:
    """Chromium and its driver; None where one of them, or selenium, is not installed."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    return found if all(found) and importlib.util.find_spec("selenium") else None


#: Why there is none.
MISSING = "pip install selenium, and chromium with chromedriver (Debian: chromium, chromium-driver)"


class Browser:
    """Use as a context manager.

    Args:
        binary: chromium.
        driver: chromedriver of the same version.
        profile: folder of the profile, fresh.
    """

    def __init__(self, binary: str, driver: str, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        from selenium.webdriver.support.ui import WebDriverWait

        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.wait = WebDriverWait(self.driver, TIMEOUT_S)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def emulate(self, width: int, scheme: str, height: int = 900) -> None:
        """A window of so many CSS pixels, and whether its owner likes it ``light`` or ``dark``."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def faults(self) -> list[str]:
        """What the browser complains of since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def _find(self, selector: str) -> Any:
        return self.wait.until(lambda driver: driver.find_element("css selector", selector))

    def open(self, address: str) -> None:
        self.driver.get(address)
        self._find("#both")

    def upload(self, path: Path) -> None:
        self._find("input[type=file]").send_keys(str(path))
        self._find("#source img")

    def click(self, element: str) -> None:
        self._find(f"#{element}").click()

    def text(self, element: str) -> str:
        return self._find(f"#{element} textarea").get_attribute("value")

    def content(self, element: str) -> str:
        self.wait.until(lambda driver: driver.find_element("css selector", f"#{element}").text)
        return self._find(f"#{element}").text

    def wait_for_picture(self, element: str) -> io.BytesIO:
        """The bytes of the picture in an element, fetched by the page itself once it is loaded."""
        image = self._find(f"#{element} img")
        self.wait.until(lambda _: image.get_property("naturalWidth"))
        script = (
            "const done = arguments[1];"
            "fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => done(Array.from(new Uint8Array(b))));"
        )
        return io.BytesIO(bytes(self.driver.execute_async_script(script, image.get_attribute("src"))))

    def screenshot(self, path: Path) -> None:
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1120, min(int(height), 1600) + 180)
        self.driver.execute_script("window.scrollTo(0, 0)")
        self.driver.save_screenshot(str(path))

    def hosts(self) -> set[str]:
        """Hosts of every request that left the page's network stack so far, from the browser's own log."""
        import json

        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        answered = {urlsplit(url).netloc for url in urls if url.startswith(("http", "ws"))}
        return answered - self._blocked(messages)

    @staticmethod
    def _blocked(messages: list[dict[str, Any]]) -> set[str]:
        """Hosts whose requests the page's policy stopped before they were sent."""
        names = {
            message["params"]["requestId"]: urlsplit(message["params"]["request"]["url"]).netloc
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }
        return {
            names[message["params"]["requestId"]]
            for message in messages
            if message["method"] == "Network.loadingFailed" and message["params"].get("blockedReason") == "csp"
        }
