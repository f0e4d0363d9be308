"""The Hugging Face hub: a repository's files fetched into the hub's cache, or written there in one commit.

Only safetensors and JSON are fetched, so that nothing that is loaded can run code. An address is `hf://user/name`, or
`hf://user/name@revision`, as in the hub's own file system.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What is read from a repository, and all that is.
READABLE = ("*.safetensors", "*.json", "*.jsonl")
# A path that begins so is an address; `Path` makes one slash of two.
_ADDRESS = re.compile(r"hf:(?:/{1,2}|$)(?P<repository>[^@]*)(?:@(?P<revision>.+))?")


def local_path(path: str | Path) -> Path:
    """The path; if it is an address on the hub, the folder that its files were fetched into.

    Raises:
        FileNotFoundError: if the repository is not there, or could not be fetched.
        ValueError: if the address is none.
    """
    if (address := _ADDRESS.fullmatch(str(path))) is None:
        return Path(path).expanduser()
    return fetched(address["repository"], revision=address["revision"])


def fetched(repository: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder in the hub's cache that holds a repository's readable files, after fetching what has changed.

    Without a network the copy of an earlier call is used, if there is one.

    Args:
        repository: `"user/name"`.
        revision: A branch, tag or commit; by default the main branch.
        token: A token of the hub's; by default the one that you logged in with.

    Raises:
        FileNotFoundError: if the repository or the revision is not there, may not be read, or could not be fetched.
        ValueError: if `repository` is no name of one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    check_repository(repository)
    try:
        with _without_progress_bars():
            folder = snapshot_download(repository, revision=revision, token=token, allow_patterns=list(READABLE))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no revision {revision!r} on the Hugging Face hub: give a branch, a tag or a commit."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no model {repository} on the Hugging Face hub, or it is private or gated and you may not read "
            "it. Check the name; to read what is yours, log in with `hf auth login` or give a token."
        ) from error
    except _failures() as error:
        raise FileNotFoundError(
            f"{repository} could not be fetched from the Hugging Face hub ({_reason(error)}), and there is no copy of "
            "it here. Check the network and HF_HUB_OFFLINE; or copy its files into a folder and give its path."
        ) from error
    return Path(folder)


def committed(
    repository: str,
    files: Mapping[str, Path],
    *,
    message: str,
    replaced: Collection[str] = (),
    private: bool = True,
    token: str | None = None,
) -> str:
    """Write files into a repository, which is made if need be, in one commit: all of them or none.

    Args:
        repository: `"user/name"`.
        files: What each file is called there, and where it is here.
        replaced: Names of files that are removed there, if they are not among these.
        message: The commit's message.
        private: Whether only you may read a new repository. A public one that is there already is refused.
        token: A token of the hub's that may write; by default the one that you logged in with.

    Returns:
        The address of the commit on the hub's website.

    Raises:
        PermissionError: if there is no token, or it may not write there.
        ConnectionError: if the hub could not be reached, or refused.
        ValueError: if `repository` is no name of one, or it is public and `private` is true.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_repository(repository)
    if (token or get_token()) is None:
        raise PermissionError(
            "There is no token of the Hugging Face hub here. Log in once with `hf auth login`, set HF_TOKEN, or give "
            "token=; https://huggingface.co/settings/tokens makes one that may write."
        )
    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if private and not hub.repo_info(repository).private:
            raise ValueError(
                f"{repository} is public, and private=True: give private=False to publish there, or another name."
            )
        with _without_progress_bars():
            left_over = sorted(set(hub.list_repo_files(repository)) & set(replaced) - files.keys())
            operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
            operations += [CommitOperationDelete(name) for name in left_over]
            found = hub.create_commit(repository, operations, commit_message=message)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise PermissionError(
                f"The Hugging Face hub does not let you write to {repository} ({_reason(error)}): check the name, and "
                "that your token may write there. Nothing was uploaded."
            ) from error
        raise ConnectionError(f"The Hugging Face hub refused ({_reason(error)}). Nothing was uploaded.") from error
    except _failures() as error:
        raise ConnectionError(
            f"The Hugging Face hub could not be reached ({_reason(error)}): check the network and HF_HUB_OFFLINE. "
            "Nothing was uploaded."
        ) from error
    return found.commit_url


def check_repository(repository: str) -> None:
    """Raise `ValueError` unless this can be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        is_whole = repository.count("/") == 1
    except HFValidationError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{repository!r} is no name of a repository on the hub: give 'user/name'.")


def _failures() -> tuple[Any, ...]:
    """What the hub's client raises: an `OSError`, or whatever its versions derive their errors from."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return (OSError, OfflineModeIsEnabled, *HfHubHTTPError.__bases__)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
