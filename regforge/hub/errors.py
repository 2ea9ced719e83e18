"""Addresses on the Hub, and what an exception of its client means, in one sentence.

Knows huggingface_hub's exceptions and the Hub's HTTP answers; knows nothing about what was being
done with the repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from regforge.errors import RegforgeError
from regforge.journal import without_secrets
from regforge.words import first_line

if TYPE_CHECKING:
    from httpx import Response


# ---------------------------------------------------------------------------------------- addresses

_REPOSITORY = re.compile(
    r"(?:datasets/)?(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[^\s@]+))?"
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of the Hub at a branch, tag or commit; None is the main branch.

    Of a dataset of several configurations, `config` is one of them.
    """

    repo_id: str
    revision: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str, *, dataset: bool = False) -> HubAddress | None:
        """Parse `user/name`, `user/name@v1`, the same after `datasets/`, or the page's URL.

        Of a dataset also `user/name:config` and `user/name:config@v1`. Returns None for any other
        text.
        """
        text = re.sub(r"^(?:https?://[^/\s]+/(?=datasets/)|hf://)", "", text.strip()).rstrip("/")
        found = _REPOSITORY.fullmatch(re.sub(r"/tree/(?=[^/]+$)", "@", text))
        if found is None or any(set(part) <= {"."} for part in found["id"].split("/")):
            return None
        if found["config"] and not dataset:
            return None
        return cls(found["id"], found["revision"], found["config"])

    def at(self, revision: str | None) -> HubAddress:
        """The same repository at another revision; unchanged for None."""
        return self if revision is None else replace(self, revision=revision)

    def __str__(self) -> str:
        """As `parse` reads it."""
        config = f":{self.config}" if self.config else ""
        return f"{self.repo_id}{config}" + (f"@{self.revision}" if self.revision else "")


# ------------------------------------------------------------------------------------------- errors


RepoType = Literal["dataset", "model"]

_PUBLIC_HUB = "huggingface.co"
_TOO_BUSY = frozenset({408, 425, 500, 502, 503, 504})
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_NO_ROOM = re.compile(r"storage.*(limit|full)|quota|upgrade your plan", re.IGNORECASE)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."

_Words = tuple[str, str | None]  # message, hint


class HubError(RegforgeError):
    """Something on the Hub that is not there, may not be used, or cannot be reached."""


def explained(
    error: Exception, repo_id: str, *, repo_type: RepoType = "dataset", revision: str | None = None
) -> HubError:
    """Turn an exception of huggingface_hub into one for people; no token gets into its text.

    Looks through what the exception was raised from too, so that one of `datasets` or `diffusers`
    may be given as it is.
    """
    for link in _chain(error):
        if isinstance(link, HubError):
            return link
    message, hint = _Target(repo_id, repo_type, revision).words(error)
    return HubError(_clean(message), hint=None if hint is None else _clean(hint))


def page(repo_id: str, repo_type: RepoType = "dataset") -> str:
    """The address of a repository's page on the Hub in use, without anybody's credentials."""
    from huggingface_hub import constants

    folder = "datasets/" if repo_type == "dataset" else ""
    return _CREDENTIALS.sub("", f"{constants.ENDPOINT}/{folder}{repo_id}")


def missing(repo_id: str, repo_type: RepoType = "dataset") -> HubError:
    """The error for a repository that does not exist."""
    message, hint = _Target(repo_id, repo_type).missing()
    return HubError(message, hint=hint)


def is_transient(error: Exception) -> bool:
    """Whether the same request may go well in a while: overload, a cut, another's commit."""
    if _offline(error):
        return False
    for link in _chain(error):
        response = _response(link)
        if response is not None:
            status: int = response.status_code
            return status in _TOO_BUSY or status in (409, 412, 429)
        # A gateway in trouble answers in HTML, which the client takes for JSON.
        if isinstance(link, (*_connection_errors(), json.JSONDecodeError)):
            return True
    return False


def retry_after(error: Exception) -> float:
    """Seconds for which the Hub asked to be left alone; 0.0 if it did not."""
    responses = (_response(link) for link in _chain(error))
    return next((_wait(response) for response in responses if response is not None), 0.0)


@dataclass(frozen=True)
class _Target:
    """The repository that a request was about, and the words for what went wrong there."""

    repo_id: str
    repo_type: RepoType
    revision: str | None = None

    @property
    def page(self) -> str:
        return page(self.repo_id, self.repo_type)

    def words(self, error: Exception) -> _Words:
        if _offline(error):
            return self.unreachable(None)
        for link in _chain(error):
            found = self._words_of(link)
            if found is not None:
                return found
        line = _one_line(error)
        # `datasets` cuts what it raises off from what it was raised for.
        if type(error).__name__ != "DatasetNotFoundError":
            return f"{self.repo_id}: the Hub's client gave up ({line}).", None
        if "gated" in line:
            return self.gated()
        return self.no_revision() if line.startswith("Revision") else self.missing()

    def _words_of(self, error: BaseException) -> _Words | None:
        from huggingface_hub import errors

        if isinstance(error, errors.HFValidationError):
            return (
                f"{self.repo_id!r} is no name of a Hub {self.repo_type}.",
                "A name is user/name, of letters, digits, '-', '_' and '.'.",
            )
        if isinstance(error, errors.LocalTokenNotFoundError):
            return "You are not logged in to the Hub.", _LOG_IN
        if type(error) is ValueError:
            return f"{self.repo_id}: the Hub's client refuses it ({_one_line(error)}).", None
        response = _response(error)
        if response is not None:
            return self._answered(error, response)
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is None:
            return self.unreachable(None)
        return self.unreachable(error) if isinstance(error, _connection_errors()) else None

    def _answered(self, error: BaseException, response: Response) -> _Words:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return self.gated()
        if isinstance(error, errors.RevisionNotFoundError):
            return self.no_revision()
        if isinstance(error, errors.EntryNotFoundError):
            path = urlsplit(str(response.request.url)).path
            name = unquote(re.sub(r".*?/(?:resolve|tree)/[^/]+/", "", path))
            listed = f"Its files are listed on {self.page}/tree/{self.revision or 'main'}."
            return f"{self.repo_id} has no file {name}.", listed
        if isinstance(error, errors.DisabledRepoError):
            return f"{self.repo_id} is disabled on the Hub, by its owner or by the Hub.", None
        if isinstance(error, errors.RepositoryNotFoundError):
            return self.missing()
        lines = (getattr(error, "server_message", None) or "").strip().splitlines()
        return self._status(f": {lines[0].rstrip('.')}" if lines else "", response)

    def gated(self) -> _Words:
        return (
            f"{self.repo_id} is gated: its owners ask you to accept their terms first.",
            f"Accept them on {self.page}, then log in: hf auth login",
        )

    def no_revision(self) -> _Words:
        which = "that revision" if self.revision is None else f"revision {self.revision!r}"
        listed = f"Its branches and tags are listed on {self.page}."
        return f"{self.repo_id} has no {which}.", listed

    def missing(self) -> _Words:
        from huggingface_hub import get_token

        message = f"There is no {self.repo_type} {self.repo_id} on the Hub, or you may not see it."
        if get_token() is None:
            return message, "Check the spelling; for a private one log in: hf auth login"
        return message, "Check the spelling, and with `hf auth whoami` whose token is in use."

    def _status(self, reason: str, response: Response) -> _Words:
        """What an answer means by its status alone; `reason` is what the Hub's message adds."""
        from huggingface_hub import constants, get_token

        status = response.status_code
        hint: str | None = "Run the same command again."
        if status == 401 and get_token() is None:
            message, hint = "You are not logged in to the Hub.", _LOG_IN
        elif status == 401:
            message = "The Hub does not accept your token; it may have run out."
            hint = (
                f"Make a new one on {constants.ENDPOINT}/settings/tokens, then: hf auth login. "
                "HF_TOKEN in the environment goes before it."
            )
        elif status in (402, 413, 507) or (status in (400, 403) and _NO_ROOM.search(reason)):
            message = f"The Hub has no room for {self.repo_id}{reason}."
            hint = "Delete something there."
        elif status == 403 and response.request.method in ("GET", "HEAD"):
            message = f"You may not read {self.repo_id}{reason}."
            hint = "Check the rights of your token."
        elif status == 403:
            message = f"You may not write to {self.repo_id}{reason}."
            hint = (
                "Use a token with the right to write there, choose a name of your own, or offer "
                "the change as a pull request."
            )
        elif status in (409, 412):
            message = f"Somebody else changed {self.repo_id} at the same time{reason}."
        elif status == 429:
            message = f"{_host()} takes no more requests for now{reason}."
            if wait := _wait(response):
                hint = f"Run the same command again in {wait:.0f} seconds."
        elif status in _TOO_BUSY or status >= 500:
            message = f"{_host()} is in trouble (HTTP {status}{reason})."
            hint = "Run the same command again in a while."
        else:
            message, hint = f"{_host()} refuses {self.repo_id} (HTTP {status}{reason}).", None
        return message, hint

    def unreachable(self, error: BaseException | None) -> _Words:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return (
                f"The Hub may not be asked for the {self.repo_type} {self.repo_id}: HF_HUB_OFFLINE "
                "is set.",
                "Unset HF_HUB_OFFLINE.",
            )
        reason = f" ({first_line(error)})" if error is not None and str(error) else ""
        return f"{_host()} cannot be reached{reason}.", "Check the network."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, also where that is not shown."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _connection_errors() -> tuple[type[Exception], ...]:
    """What is raised where the connection fails."""
    from httpx import TransportError

    return TransportError, ConnectionError, TimeoutError


def _response(error: BaseException) -> Response | None:
    from httpx import HTTPStatusError
    from huggingface_hub.errors import HfHubHTTPError

    return error.response if isinstance(error, HfHubHTTPError | HTTPStatusError) else None


def _offline(error: Exception) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    links = list(_chain(error))
    if any(isinstance(link, OfflineModeIsEnabled) for link in links):
        return True
    local = any(isinstance(link, LocalEntryNotFoundError) for link in links)
    return bool(constants.HF_HUB_OFFLINE) and local


def _wait(response: Response) -> float:
    after = response.headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    # https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html, such as
    # "api";r=0;t=55: no requests are left, and new ones come in 55 seconds.
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", response.headers.get("RateLimit", ""))
    return float(limit[1]) if limit else 0.0


def _host() -> str:
    """The Hub, with its address where that is not the public one."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    return "The Hub" if host in ("", _PUBLIC_HUB) else f"The Hub at {host} (HF_ENDPOINT)"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:500] or type(error).__name__


def _clean(text: str) -> str:
    return without_secrets(_CREDENTIALS.sub("", text))
