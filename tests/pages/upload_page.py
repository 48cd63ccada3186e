"""The upload page as somebody uses it."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

from playwright.sync_api import ConsoleMessage, Locator, Page

from tests.frontend.building import FRONTEND
from tests.frontend.pages import WAIT

AXE = FRONTEND / "node_modules" / "axe-core" / "axe.min.js"


class Visitor:
    """One page. root: the URL of the server's root."""

    def __init__(self, page: Page, root: str) -> None:
        self.page = page
        self.root = root
        self.errors: list[str] = []
        self.traffic: list[tuple[Literal["asked", "answered"], str]] = []
        """Requests and responses with their URLs, in their order."""
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)
        page.on("request", lambda request: self.traffic.append(("asked", request.url)))
        page.on("response", lambda response: self.traffic.append(("answered", response.url)))

    def open(self) -> None:
        """Load the page (again)."""
        self.page.goto(self.root)
        self.page.wait_for_selector(".drop")

    def give(self, *files: Path) -> None:
        """Choose files, as in the browser's dialogue."""
        self.page.set_input_files("#files", [str(file) for file in files])

    def row(self, name: str) -> Locator:
        """An upload of the list."""
        return self.page.locator("#uploads > li", has_text=name)

    def left(self, name: str) -> Locator:
        """An upload of an earlier visit."""
        return self.page.locator("#left > li", has_text=name)

    def press(self, action: str, name: str) -> None:
        """Press a button of an upload."""
        self.page.get_by_role("button", name=f"{action}: {name}", exact=True).click()

    def press_any(self, action: str) -> None:
        """Press the button that is called so."""
        self.page.get_by_role("button", name=action, exact=True).click()

    def wait_state(self, name: str, state: str) -> None:
        """Wait until an upload is in this state."""
        found = self.page.locator(f'#uploads > li[data-state="{state}"]', has_text=name)
        found.wait_for()

    def wait_sent(self, name: str, share: float) -> None:
        """Wait until this share of an upload was sent."""
        self.page.wait_for_function(
            """([name, share]) => [...document.querySelectorAll('#uploads progress')].some(
              (bar) => bar.getAttribute('aria-label') === name && bar.value >= share * bar.max)""",
            arg=[name, share],
        )

    def url_of(self, name: str) -> str:
        """Where a finished upload is, by its link."""
        link = self.row(name).get_by_role("link").get_attribute("href")
        assert link is not None
        return urljoin(self.page.url, link)

    def wait_text(self, text: str | re.Pattern[str]) -> None:
        """Wait until the page says something."""
        self.page.get_by_text(text).first.wait_for()

    def probes_answered(self, since: int) -> int:
        """How many probes were answered, from a place in `traffic` on, before the page asked about an upload."""
        until = takewhile(
            lambda each: each[0] != "asked" or "/files/" not in each[1], self.traffic[since:]
        )
        return sum(kind == "answered" and url.endswith("/healthz") for kind, url in until)

    def drop(self, *files: tuple[str, str]) -> None:
        """Drop files with these names and contents."""
        self._transfer("drop", files)

    def paste(self, *files: tuple[str, str]) -> None:
        """Paste files with these names and contents."""
        self._transfer("paste", files)

    def serious(self) -> list[str]:
        """What axe-core finds that hinders people seriously."""
        self.page.evaluate(AXE.read_text("utf-8"))
        found: list[dict[str, Any]] = self.page.evaluate("axe.run().then((r) => r.violations)")
        return [
            json.dumps({"id": each["id"], "at": [node["html"] for node in each["nodes"]]})
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        wide: bool = self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        return wide

    def _transfer(self, event: str, files: tuple[tuple[str, str], ...]) -> None:
        self.page.evaluate(
            """([event, files]) => {
              const transfer = new DataTransfer()
              for (const [name, text] of files) transfer.items.add(new File([text], name))
              const more = { bubbles: true, cancelable: true }
              document.body.dispatchEvent(event === 'drop'
                ? new DragEvent('drop', { ...more, dataTransfer: transfer })
                : new ClipboardEvent('paste', { ...more, clipboardData: transfer }))
            }""",
            [event, [list(file) for file in files]],
        )

    def _said(self, message: ConsoleMessage) -> None:
        # Requests that fail are what many tests are about.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)
