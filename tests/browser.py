"""A page in headless Chromium, where it is installed, and what a script of the test saw there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
LIGHT, DARK = 1, 0  # Chromium's preferredColorScheme

SCRIPT = """<script>
const seen = { errors: [] };
window.onerror = message => seen.errors.push(String(message));
document.addEventListener("DOMContentLoaded", () => setTimeout(() => {
  try {
    @LOOK@
  } catch (error) { seen.errors.push(String(error.stack)); }
  seen.width = window.innerWidth;
  seen.overflow = document.documentElement.scrollWidth - window.innerWidth;
  seen.requests = performance.getEntriesByType("resource").map(entry => entry.name).filter(
    name => !name.startsWith("data:"));
  seen.title = document.title;
  const node = document.createElement("script");
  node.type = "seen";
  node.id = "seen";
  node.textContent = JSON.stringify(seen).replaceAll("<", "\\\\u003c");
  parent.document.body.append(node);
}, 100));
</script>"""
# A window of Chromium has at least 500 px, a frame may have less.
FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body style="margin: 0">
<iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe></body></html>"""


def visit(page: str, look: str, folder: Path, width: int = 400, scheme: int = LIGHT) -> dict[str, Any]:
    """What the lines `look` put into `seen`, with the title, the errors, the requests that left the page and how far it
    is wider than the window. Fails if something is on the console. `folder`: for the page and the browser's profile."""
    (folder / "page.html").write_text(page.replace("<title>", f"{SCRIPT.replace('@LOOK@', look)}<title>", 1))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run([str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,900",
                           "--allow-file-access-from-files",
                           f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={folder}/profile",
                           "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom",
                           f"file://{folder}/frame.html"], capture_output=True, text=True, timeout=60, check=True)
    console = re.findall(r".*CONSOLE.*", done.stderr)
    assert not console, console
    return json.loads(re.findall(r'<script type="seen" id="seen">(.*?)</script>', done.stdout, re.DOTALL)[0])


def content_of(page: str) -> dict[str, Any]:
    """The JSON that a page has."""
    return json.loads(re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)[0])


def leaving(page: str) -> list[str]:
    """What in the page asks for something outside it."""
    return re.findall(r"(?:src|href)=[\"']?(?!data:)\w+:|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
