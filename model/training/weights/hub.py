"""A base model on the hub: whether it is there, asked with one small request, and at which commit.

A branch moves. What the first attempt of a run found stays in its directory, so that all attempts train on the same
weights and the result can name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import exits, hubcache
from model.exits import FailureError
from model.files import write_json
from model.training.config import TrainSettings
from model.training.weights import basemodel, stored
from model.training.weights.files import FilesError, ModelFiles, read_json

RECORD = "base_model.json"
TIMEOUT_SECONDS = 10.0

_CONFIG = "config.json"


def pin(settings: TrainSettings) -> TrainSettings:
    """Return the settings with the hub's commit as the base model's revision; a directory's stay as they are.

    The run's directory must exist; the commit is written into it, or read from it when an earlier attempt asked for
    the same.

    Raises
    ------
    FailureError
        When the base model is not there, refused or out of reach, or cannot be trained on as it is stored.
    """
    name, revision = settings.base_model, settings.base_model_revision
    if basemodel.check(name) is not None:
        return settings
    path = settings.run_directory / RECORD
    own = recorded = _read(path)
    if not own and settings.resume_from is not None:
        recorded = _read(settings.resume_from / RECORD)  # a branch that has moved does not keep a run from going on
    commit = recorded.get("commit")
    if not commit or recorded.get("name") != name or revision not in (recorded.get("revision"), commit):
        commit = find_commit(name, revision)
        recorded = {"name": name, "revision": revision, "commit": commit}
    if recorded != own:
        write_json(path, recorded)
    settings = settings.model_copy(update={"base_model_revision": commit})
    check_base(settings)
    return settings


def check_base(settings: TrainSettings) -> ModelFiles | None:
    """Refuse a base model whose weights cannot be trained on as they are stored, before anything is loaded.

    Returns
    -------
    ModelFiles | None
        What its files say; None for a model on the hub, of which only config.json is looked at.

    Raises
    ------
    FailureError
        See `stored.read_base`, and when the hub does not answer.
    """
    name, revision = settings.base_model, settings.base_model_revision
    cuda = settings.gpus > 0 and not settings.pretended_gpus
    directory = basemodel.check(name)
    if directory is not None:
        files = stored.read_base(directory, quantization=settings.quantization, cuda=cuda)
        stored.check_tokenizer(files)
        return files
    from huggingface_hub import constants, hf_hub_download

    hubcache.prepare(Path(constants.HF_HUB_CACHE))
    path = basemodel.translated(name, revision, lambda: hf_hub_download(name, _CONFIG, revision=revision))
    stored.check_config(name, read_json(Path(path)), quantization=settings.quantization, cuda=cuda)
    return None


def find_commit(name: str, revision: str | None) -> str:
    """Return the commit of a model on the hub, that of the local copy where the hub is not to be asked or silent.

    Parameters
    ----------
    name
        As in owner/name.
    revision
        A branch, tag or commit; None for the main branch.

    Raises
    ------
    FailureError
        When there is no such model or revision, or none that may be read, or the hub is out of reach.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    def ask() -> Any:
        url = hf_hub_url(name, _CONFIG, revision=revision)
        return get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS).commit_hash

    found = basemodel.translated(name, revision, lambda: try_to_load_from_cache(name, _CONFIG, revision=revision))
    local = Path(found).parent.name if isinstance(found, str) else None
    if local is not None and (constants.HF_HUB_OFFLINE or local == revision):
        return local
    try:
        commit = basemodel.translated(name, revision, ask)
    except FailureError as failure:
        if failure.code == exits.UNAVAILABLE and local is not None:
            return local
        raise
    if commit is None:
        text = f"{name}: {constants.ENDPOINT} does not say at which commit it is, as the hub would"
        raise FailureError(exits.UNAVAILABLE, "BaseModelUnavailable", text)
    return str(commit)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FilesError:
        return {}
