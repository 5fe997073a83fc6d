"""A base model on the hub: whether it is there, asked with one small request, and at which commit.

A branch moves. What the first attempt of a run found stays in its directory, so that all attempts train on the same
weights and the result can name them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from model import exits, hubcache
from model.exits import FailureError
from model.files import write_json
from model.training.config import TrainSettings
from model.training.weights import origin, stored
from model.training.weights.files import FilesError, ModelFiles, Tensor, read_json, read_model

RECORD = "base_model.json"
TIMEOUT_SECONDS = 10.0

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


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
    if origin.check(name) is not None:
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
    directory = origin.check(name)
    if directory is not None:
        files = stored.read_base(directory, quantization=settings.quantization, cuda=cuda)
        stored.check_tokenizer(files)
        return files
    stored.check_config(name, stored_config(name, revision), quantization=settings.quantization, cuda=cuda)
    if not _has_weights(name, revision):
        raise origin.missing(
            f"{name} has no {' and no '.join(_WEIGHTS)} on the hub: weights in other files, as pytorch_model.bin or "
            "*.gguf, are not read: save the model as safetensors first"
        )
    return None


def read_config(base_model: str, revision: str | None) -> dict[str, Any]:
    """Return a model's config.json as it is, from its directory or the hub.

    Raises
    ------
    FailureError
        When it is not there, refused, out of reach or broken.
    """
    directory = origin.check(base_model)
    if directory is None:
        from huggingface_hub import constants, hf_hub_download

        hubcache.prepare(Path(constants.HF_HUB_CACHE))
        path = origin.translated(base_model, revision, lambda: hf_hub_download(base_model, _CONFIG, revision=revision))
    else:
        path = directory / _CONFIG
    try:
        return read_json(Path(path))
    except FilesError as error:
        raise origin.missing(str(error)) from error


def stored_config(base_model: str, revision: str | None) -> dict[str, Any]:
    """Return a model's config.json as `read_config` does, without a quantization that its weights do not have.

    The weights' headers are read where it names one: those of the files that are here, or else from the hub.

    Raises
    ------
    FailureError
        As `read_config`, or when the weights lack what their quantization needs.
    """
    config = read_config(base_model, revision)
    if stored.quantization_of(config) is None:
        return config
    tensors = _tensors(base_model, revision)
    if tensors is None:
        return config
    config = stored.settled(config, tensors)
    stored.check_tensors(base_model, config, tensors)
    return config


def _tensors(base_model: str, revision: str | None) -> dict[str, Tensor] | None:
    """Return what headers say of a model's weights, None where they cannot be read: loading it will tell why."""
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    directory = origin.check(base_model)
    if directory is None and isinstance(found := try_to_load_from_cache(base_model, _CONFIG, revision=revision), str):
        directory = Path(found).parent
    if directory is not None:
        try:
            return read_model(directory).tensors
        except FilesError:
            if origin.check(base_model) is not None:
                return None
    try:
        parts = HfApi().get_safetensors_metadata(base_model, revision=revision, timeout=TIMEOUT_SECONDS).files_metadata
    except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, errors.HTTPError, OSError):
        return None
    return {
        name: Tensor(tensor.dtype, tuple(tensor.shape))
        for part in parts.values()
        for name, tensor in part.tensors.items()
    }


def _has_weights(name: str, revision: str | None) -> bool:
    """Whether a model on the hub has weights in safetensors; where the hub says nothing, loading it will tell."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(name, path, revision=revision), str) for path in _WEIGHTS):
        return True
    if constants.HF_HUB_OFFLINE:
        return True

    def is_there(path: str) -> bool:
        try:
            get_hf_file_metadata(hf_hub_url(name, path, revision=revision), timeout=TIMEOUT_SECONDS)
        except errors.RemoteEntryNotFoundError:
            return False
        return True

    try:
        return any(origin.translated(name, revision, partial(is_there, path)) for path in _WEIGHTS)
    except FailureError as failure:
        if failure.code == exits.UNAVAILABLE:
            return True
        raise


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

    found = origin.translated(name, revision, lambda: try_to_load_from_cache(name, _CONFIG, revision=revision))
    local = Path(found).parent.name if isinstance(found, str) else None
    if local is not None and (constants.HF_HUB_OFFLINE or local == revision):
        return local
    try:
        commit = origin.translated(name, revision, ask)
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
