"""Take a picture of Ray's dashboard while a command runs, for docs/dashboard.png.

    python benchmarks/dashboard_picture.py PICTURE [--page jobs/01000000] [--wait 15]

Needs Chromium, and a command that has started its local Ray with a dashboard. The browser is driven
by its own protocol, so that the page has time to ask for all that it shows.
"""

import argparse
import asyncio
import base64
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp  # comes with ray[default]

DEBUGGER = 9333
TOKEN = Path.home() / ".ray" / "auth_token"


async def picture(given: argparse.Namespace) -> bytes:
    """Return the page as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        browser = await asyncio.create_subprocess_exec(
            shutil.which("chromium") or "chromium",
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--remote-debugging-port={DEBUGGER}", f"--user-data-dir={profile}"),
            f"--window-size={given.width},{given.height}",
            "about:blank",
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await shot(given)
        finally:
            browser.kill()
            await browser.wait()


async def tab_of(http: aiohttp.ClientSession) -> str:
    """Return where the browser takes commands for its page."""
    for _ in range(100):
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"http://127.0.0.1:{DEBUGGER}/json") as answer:
                for tab in await answer.json():
                    if tab["type"] == "page":
                        return str(tab["webSocketDebuggerUrl"])
        await asyncio.sleep(0.2)
    raise SystemExit("Chromium does not answer")


async def shot(given: argparse.Namespace) -> bytes:
    """Drive the browser that was started."""
    async with aiohttp.ClientSession() as http:
        place = await tab_of(http)
        async with http.ws_connect(place, max_msg_size=0) as line:

            async def do(method: str, **arguments: Any) -> dict[str, Any]:
                await line.send_json({"id": 1, "method": method, "params": arguments})
                while True:
                    heard = await line.receive_json()
                    if heard.get("id") == 1:
                        return dict(heard["result"])

            if TOKEN.exists():
                cookie = {"name": "ray-authentication-token", "value": TOKEN.read_text().strip()}
                await do("Network.setCookie", url=given.dashboard, **cookie)
            await do("Page.navigate", url=f"{given.dashboard}/#/{given.page}")
            await asyncio.sleep(given.wait)
            for label in given.click:
                is_it = f"element => element.innerText?.trim() === {label!r}"
                find = f"[...document.querySelectorAll('*')].filter({is_it}).pop()"
                await do("Runtime.evaluate", expression=f"{find}?.click()")
                await asyncio.sleep(3)
            found = await do("Page.captureScreenshot", format="png")
            return base64.b64decode(found["data"])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dashboard", default="http://127.0.0.1:8265")
    parser.add_argument("--page", default="jobs/01000000")
    parser.add_argument("--click", nargs="*", default=[], help="headings to unfold")
    parser.add_argument("--wait", type=float, default=15.0)
    parser.add_argument("--width", type=int, default=1300)
    parser.add_argument("--height", type=int, default=1700)
    given = parser.parse_args()
    given.picture.write_bytes(asyncio.run(picture(given)))


if __name__ == "__main__":
    main()
