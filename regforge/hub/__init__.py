"""The Hugging Face Hub: addresses, errors in plain words, and commits that are whole or not there.

Knows repositories, files and commits; knows nothing about what the files hold.
"""

from regforge.hub.commits import Contents, Published, Remote, publish_files, quiet_client
from regforge.hub.errors import HubAddress, HubError, explained

__all__ = [
    "Contents",
    "HubAddress",
    "HubError",
    "Published",
    "Remote",
    "explained",
    "publish_files",
    "quiet_client",
]
