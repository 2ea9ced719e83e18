"""The web server of the page: for the one who started it, and for nobody else.

http://127.0.0.1:<port>/<token>/
"""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.reviewing.material import Material


class CannotServe(RegforgeError):
    """A page that cannot be served here."""

    exit_code = EXIT_USAGE


def serve(
    material: Material,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        material: What to review.
        host: Where to listen; anything but this machine itself with a warning.
        port: A free one if 0.
        open_browser: Open the page in the browser.
        announce: Is told the address.

    Raises:
        CannotServe: The extra `review` is missing, or nothing can listen there.
    """
    try:
        import uvicorn

        from regforge.reviewing.page import application, is_here
    except ImportError as error:
        raise CannotServe(
            f"The page needs a package that is not here: {error.name}.",
            hint="pip install 'regforge[review]'",
        ) from error
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise CannotServe(f"Nothing can listen at {host}, port {port}: {error}.") from error
    if not is_here(host):
        announce(
            f"Warning: {host} may be reached from other machines, and nothing is encrypted. "
            "Whoever has the address can look at the images and decide."
        )
    token, name = secrets.token_urlsafe(24), f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/{token}/"
    announce(f"Review {material.name}: {address}   (Ctrl-C ends it)")
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    app = application(material, token, host)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
