"""Upload a converted network to the Hugging Face Hub."""

import re
from pathlib import Path

from lightning_merge.core.checkpoints.hub import reachable
from lightning_merge.core.errors import InputError, first_line


def check_name(name: str | None, public: bool) -> None:
    """Check the name of a repository, and that the Hub answers, before anything is written.

    Args:
        name: Owner and name; None if nothing is uploaded.
        public: Whether it will be public.

    Raises:
        InputError: The name is not one, there is no network, or only `public` is given.
    """
    if name is None:
        if public:
            raise InputError("public=True: give --push-to-hub user/name, too")
        return
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        raise InputError(f"push_to_hub={name!r} is not a repository: give user/name")
    if not reachable():
        raise InputError(
            f"push_to_hub={name!r}: the Hub cannot be reached; go online, or leave it out"
        )


def push(folder: Path, name: str, public: bool, overwrite: bool) -> str:
    """Upload a folder as one commit; return the address of the repository.

    Args:
        folder: The folder.
        name: Owner and name of the repository, which is made.
        public: Whether everybody can read it.
        overwrite: Whether it may exist; its visibility stays as it is.

    Raises:
        InputError: The Hub refuses.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        made = api.create_repo(name, private=not public, exist_ok=overwrite)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add a merged network")
    except Exception as fault:  # the Hub's library raises many kinds
        raise InputError(
            f"push_to_hub={name!r}: {first_line(fault)}. {folder} is complete; log in with "
            "'hf auth login' for a token that may write, and give --overwrite true for a "
            "repository that exists"
        ) from fault
    return str(made)
