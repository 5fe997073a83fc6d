"""What /openapi.json says beside what the framework finds out: the documents that the routes read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from finetune.api.files import AliasRequest, RunFiles, VersionChange
from finetune.api.registry import AdapterRequest, OutcomeRequest, RunRequest, StatusPost

from .common import INPUT_NAME

READ_DOCUMENTS = (RunRequest, OutcomeRequest, StatusPost, AdapterRequest, RunFiles, VersionChange, AliasRequest)


def describe_documents(app: FastAPI) -> None:
    """Add the documents that `document` reads to the application's description."""
    describe = app.openapi
    template = "#/components/schemas/" + INPUT_NAME

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()
            _, defined = models_json_schema([(model, "validation") for model in READ_DOCUMENTS], ref_template=template)
            for name, definition in defined["$defs"].items():
                schema["components"]["schemas"][INPUT_NAME.format(model=name)] = definition
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # documented by FastAPI as the way to change it
