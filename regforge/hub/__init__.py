"""The Hugging Face Hub: addresses, errors in plain words, and commits that are whole or not there.

Knows repositories, files and commits; knows nothing about what the files hold.
"""

from regforge.hub.address import HubAddress
from regforge.hub.commits import Published, Remote, Wanted, publish_files
from regforge.hub.errors import HubError, explained

__all__ = [
    "HubAddress",
    "HubError",
    "Published",
    "Remote",
    "Wanted",
    "explained",
    "publish_files",
]
