"""The OpenAPI document of the operators' API, made from the table of its operations and the models of their documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tusd_py import __version__
from tusd_py.web.admin import models
from tusd_py.web.messages import PROBLEM_JSON

JsonObject = dict[str, Any]
"""A JSON object of the document, whose shape OpenAPI says."""

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query or the path. schema: JSON Schema of its value."""

    name: str
    about: str
    schema: Mapping[str, object]
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation. returns: the document of a response with 200; None for `media_type` alone. takes: the body's document."""

    method: str
    path: str
    about: str
    returns: type[BaseModel] | None
    takes: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    media_type: str = "application/json"


def document(operations: Iterable[Operation], server: str) -> JsonObject:
    """Return the OpenAPI document. server: path of the API."""
    listed = list(operations)
    found = {each for one in listed for each in (one.returns, one.takes) if each is not None}
    found |= {models.Problem, models.Snapshot}
    _, schemas = models_json_schema(
        [(model, "serialization") for model in sorted(found, key=lambda each: each.__name__)],
        ref_template=_REF,
    )
    paths: dict[str, JsonObject] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tusd-py operators' API",
            "version": __version__,
            "description": "Times are in seconds since the epoch, sizes in bytes, durations in seconds.",
        },
        "servers": [{"url": server}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "tusd_admin"},
            },
        },
    }


def _operation(operation: Operation) -> JsonObject:
    content: JsonObject = {operation.media_type: {}}
    if operation.returns is not None:
        content = {operation.media_type: {"schema": _reference(operation.returns)}}
    described: JsonObject = {
        "summary": operation.about,
        "parameters": [
            {
                "name": each.name,
                "in": each.place,
                "required": each.place == "path",
                "description": each.about,
                "schema": dict(each.schema),
            }
            for each in operation.parameters
        ],
        "responses": {
            "200": {"description": "OK", "content": content},
            "default": {
                "description": "A refusal or a failure",
                "content": {PROBLEM_JSON: {"schema": _reference(models.Problem)}},
            },
        },
    }
    if operation.takes is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(operation.takes)}},
        }
    return described


def _reference(model: type[BaseModel]) -> JsonObject:
    return {"$ref": _REF.format(model=model.__name__)}
