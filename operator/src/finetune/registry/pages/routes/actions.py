"""What people may change from a page. Each answers with the page where they were, which says what was done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute

from finetune.api.files import ALIAS_PATTERN, MAX_NOTES, TAG_PATTERN, AliasRequest, VersionChange
from finetune.api.registry import NAME_PATTERN
from finetune.registry.errors import Invalid
from finetune.registry.pages.forms import Notice, single
from finetune.registry.pages.rendering import HEADERS
from finetune.registry.pages.views.adapters import MARKS
from finetune.registry.pages.views.run import tags_text
from finetune.registry.pages.views.runs import base_path
from finetune.registry.pages.visit import Handler, Visit, screen

MAX_TAGS = 64
MAX_RUNS = 200
DESCRIBED = "Tags and notes are saved."


def routes() -> list[BaseRoute]:
    """Routes that change something, all of them POST."""

    def action(path: str, handler: Handler, verb: str, resource: str) -> BaseRoute:
        return screen(path, handler, verb=verb, resource=resource, method="POST")

    return [
        action("/{namespace}/chosen", _chosen, "list", "trainingruns"),
        action("/{namespace}/archive", _archive, "update", "trainingruns"),
        action("/{namespace}/runs/{name}/describe", _describe, "update", "trainingruns"),
        action("/{namespace}/runs/{name}/delete", _delete_run, "delete", "trainingruns"),
        action("/{namespace}/adapters/{name}/alias", _alias, "update", "adapters"),
        action("/{namespace}/adapters/{name}/{version}/mark", _mark, "update", "adapters"),
        action("/{namespace}/adapters/{name}/{version}/describe", _describe_version, "update", "adapters"),
        action("/{namespace}/adapters/{name}/{version}/delete", _delete_version, "delete", "adapters"),
        action("/{namespace}/datasets/{name}/{version}/delete", _delete_dataset, "delete", "datasets"),
    ]


async def _chosen(visit: Visit) -> Response:
    """Go on with the ticked runs: beside each other, or into the archive."""
    fields = await visit.form()
    if single(fields, "do") == "archive":
        await visit.require("update", "trainingruns")
        return await _put_aside(visit, fields)
    where = f"{base_path(visit.namespace)}/compare?" + urlencode([("run", uid) for uid in fields.get("run", [])])
    return RedirectResponse(where, status_code=303, headers=HEADERS)


async def _archive(visit: Visit) -> Response:
    """Put runs aside, or bring them back."""
    return await _put_aside(visit, await visit.form())


async def _put_aside(visit: Visit, fields: dict[str, list[str]]) -> Response:
    uids = [uid for said in fields.get("run", []) for uid in said.split(",")][:MAX_RUNS]
    if not uids or not all(re.fullmatch(NAME_PATTERN, uid) for uid in uids):
        raise Invalid("no run is ticked", hint="tick the runs in the list first")
    back = single(fields, "restore") == "1"
    changed = await visit.site.keeping.archive(visit.namespace, uids, archived=not back, actor=visit.person.name)
    said = f"{len(changed)} run{'' if len(changed) == 1 else 's'} {'brought back' if back else 'archived'}."
    undo = {"run": ",".join(changed), "restore": "0" if back else "1"}
    notice = Notice(text=said, undo=f"{base_path(visit.namespace)}/archive" if changed else None, fields=undo)
    return visit.done(f"{base_path(visit.namespace)}/runs", notice)


async def _describe(visit: Visit) -> Response:
    """Replace a run's tags and notes."""
    fields = await visit.form()
    run = await visit.services.lists.find(visit.namespace, visit.path("name"))
    before = await visit.site.keeping.describe(
        visit.namespace,
        run.uid,
        tags=read_tags(single(fields, "tags")),
        notes=_notes(single(fields, "notes")),
        actor=visit.person.name,
    )
    path = f"{base_path(visit.namespace)}/runs/{run.uid}"
    old = {"tags": tags_text(before.tags or {}), "notes": before.notes or ""}
    return visit.done(path, Notice(text=DESCRIBED, undo=f"{path}/describe", fields=old))


async def _delete_run(visit: Visit) -> Response:
    await visit.form()
    run = await visit.services.lists.find(visit.namespace, visit.path("name"))
    await visit.site.keeping.delete(visit.namespace, run.uid, actor=visit.person.name)
    return visit.done(f"{base_path(visit.namespace)}/runs", Notice(text=f"Run {run.name} is deleted."))


async def _alias(visit: Visit) -> Response:
    """Point an alias to a version, or remove it when no version is given."""
    fields = await visit.form()
    name, alias = visit.path("name"), single(fields, "alias").strip()
    version, expected = single(fields, "to").strip(), single(fields, "expected").strip()
    if not re.fullmatch(ALIAS_PATTERN, alias):
        raise Invalid(
            f"{alias[:70]!r} cannot be an alias", hint="small letters, digits and '-', a letter first, like production"
        )
    for number in (version, expected):
        if not re.fullmatch("[0-9]{0,9}", number):
            raise Invalid(f"{number[:20]!r} is no version", hint="write its number")
    protects = await visit.may("protect", "adapters", name)
    before = {
        each.alias: each.version for each in (await visit.services.states.aliases(visit.namespace, name)).items
    }.get(alias, 0)
    known = int(expected) if expected else None
    if version and int(version):
        request = AliasRequest(version=int(version), expected=known)
        await visit.services.states.point(
            visit.namespace, name, alias, request, protects=protects, actor=visit.person.name
        )
        said = f"{alias} points to version {version}" + (f", to {before} before." if before else ".")
    else:
        await visit.services.states.unpoint(
            visit.namespace, name, alias, expected=known, protects=protects, actor=visit.person.name
        )
        said = f"{alias} is removed; it pointed to version {before}." if before else f"There is no alias {alias}."
    path = f"{base_path(visit.namespace)}/adapters/{name}"
    undo = {"alias": alias, "to": str(before or ""), "expected": version or "0"}
    return visit.done(path, Notice(text=said, undo=f"{path}/alias", fields=undo))


async def _mark(visit: Visit) -> Response:
    """Mark a version, or take the mark back."""
    fields = await visit.form()
    name, version = visit.path("name"), int(visit.path("version"))
    mark, reason = single(fields, "mark"), single(fields, "reason").strip()
    if mark and mark not in MARKS:
        raise Invalid(f"there is no mark {mark[:40]!r}", hint=f"one of: {', '.join(MARKS)}")
    before = await visit.services.adapters.version(visit.namespace, name, version)
    await _change(visit, name, version, {"mark": mark or None, "reason": reason or None})
    path = f"{base_path(visit.namespace)}/adapters/{name}"
    old = {"mark": before.state if before.state in MARKS else "", "reason": before.state_reason or ""}
    said = f"Version {version} is {mark.lower()}." if mark else f"Version {version} has no mark any more."
    return visit.done(f"{path}?version={version}", Notice(text=said, undo=f"{path}/{version}/mark", fields=old))


async def _describe_version(visit: Visit) -> Response:
    """Replace a version's tags and notes."""
    fields = await visit.form()
    name, version = visit.path("name"), int(visit.path("version"))
    before = await visit.services.adapters.version(visit.namespace, name, version)
    change = {"tags": read_tags(single(fields, "tags")), "notes": _notes(single(fields, "notes"))}
    await _change(visit, name, version, change)
    path = f"{base_path(visit.namespace)}/adapters/{name}"
    old = {"tags": tags_text(before.tags), "notes": before.notes}
    notice = Notice(text=DESCRIBED, undo=f"{path}/{version}/describe", fields=old)
    return visit.done(f"{path}?version={version}", notice)


async def _change(visit: Visit, name: str, version: int, change: Mapping[str, object]) -> None:
    try:
        request = VersionChange.model_validate(change)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise Invalid(f"{where[:100]}: {problem['msg'][:200]}", hint="write one line of plain text") from None
    await visit.services.states.change(visit.namespace, name, version, request, actor=visit.person.name)


async def _delete_version(visit: Visit) -> Response:
    await visit.form()
    name, version = visit.path("name"), int(visit.path("version"))
    deleted = await visit.services.states.delete(visit.namespace, name, version, actor=visit.person.name)
    await visit.services.files.release(deleted.files)
    notice = Notice(text=f"The files of version {version} are deleted; what is known of it stays.")
    return visit.done(f"{base_path(visit.namespace)}/adapters/{name}?version={version}", notice)


async def _delete_dataset(visit: Visit) -> Response:
    await visit.form()
    name, version = visit.path("name"), int(visit.path("version"))
    await visit.services.datasets.delete(visit.namespace, name, version, actor=visit.person.name)
    notice = Notice(text=f"The rows of {name} version {version} are deleted; its number is not given again.")
    return visit.done(f"{base_path(visit.namespace)}/datasets", notice)


def read_tags(text: str) -> dict[str, str]:
    """Tags as `tags_text` writes them: `team=support, reviewed`. Raises `Invalid`, naming the tag."""
    tags = {}
    for part in filter(None, (each.strip() for each in re.findall(r"(?:\\.|[^,])+", text, re.DOTALL))):
        key, _, value = (each.strip() for each in part.partition("="))
        value = re.sub(r"\\([\\,])", r"\1", value)
        if not re.fullmatch(TAG_PATTERN, key) or len(value) > 256 or re.search(r"[\x00-\x1f\x7f]", value):
            raise Invalid(
                f"{part[:100]!r} is no tag", hint="write key=value, with letters, digits and '_./-' in the key"
            )
        tags[key] = value
    if len(tags) > MAX_TAGS:
        raise Invalid(f"{len(tags)} tags are too many", hint=f"at most {MAX_TAGS}")
    return tags


def _notes(text: str) -> str:
    if len(text) > MAX_NOTES or "\0" in text:
        raise Invalid("the notes are too long, or no plain text", hint=f"at most {MAX_NOTES:,} characters")
    return text
