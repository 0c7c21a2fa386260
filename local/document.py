"""The parts of the OpenAPI document that Cog 0.23.1 writes for run() or train()."""

from local.annotations import Json, Ordered, SchemaError
from local.modes import PREDICT, Mode
from local.signature import CONSTRAINTS, Parameter, Signature, title_case

TIMES = ("created_at", "started_at", "completed_at")


def is_empty(parameter: Parameter) -> bool:
    """Whether the default is None although the type has no None; Cog excepts Secret."""
    secret = parameter.type.schema.get("x-cog-secret", False)
    none = "default" in parameter.options and parameter.options["default"] is None
    return none and not parameter.type.nullable and not secret


def _property(order: int, parameter: Parameter) -> tuple[Json, bool]:
    """(schema, required) of one input."""
    options, name = parameter.options, parameter.name
    if "choices" in options:
        schema: Json = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
    else:
        schema = {"title": title_case(name), **parameter.type.schema}
    schema["x-order"] = order
    has_default = "default" in options and not is_empty(parameter)
    if has_default:
        schema["default"] = options["default"]
    if parameter.type.nullable or (has_default and options["default"] is None):
        schema["nullable"] = True
    schema |= {CONSTRAINTS[key]: value for key, value in options.items() if key in CONSTRAINTS}
    if "description" in options:
        schema["description"] = options["description"]
    if options.get("deprecated"):
        schema["deprecated"] = True
    if "accept" in options:
        schema["x-cog-accept"] = options["accept"]
    required = not has_default and (parameter.type.union or not parameter.type.nullable)
    return schema, required


def _components(signature: Signature, mode: Mode) -> Ordered:
    prefix = mode.prefix
    properties, required, enums = Ordered(), [], Ordered()
    for order, parameter in enumerate(signature.parameters):
        properties[parameter.name], needed = _property(order, parameter)
        if needed:
            required.append(parameter.name)
        if choices := parameter.options.get("choices"):
            kind = parameter.type.scalar["type"]
            enums[parameter.name] = {
                "title": parameter.name,
                "description": "An enumeration.",
                "enum": choices,
                "type": kind,
            }
    inputs: Json = {"title": f"{prefix}Input", "type": "object", "properties": properties}
    if required:
        inputs["required"] = required
    fixed = Ordered({f"{prefix}Input": inputs, f"{prefix}Output": {**signature.output, "title": "Output"}})
    rest = _fixed_components(prefix, title_case(mode.noun))
    if taken := enums.keys() & (fixed.keys() | rest.keys()):
        raise SchemaError(f"an input with choices cannot be called {min(taken)}: that is a part of the document")
    return Ordered(fixed | enums | rest)


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _fixed_components(prefix: str, name: str) -> Json:
    texts = {key: {"title": title_case(key), "type": "string"} for key in ("id", "version", "status", "error", "logs")}
    times = {key: {"title": title_case(key), "type": "string", "format": "date-time"} for key in TIMES}
    fields = {"input": _ref(f"{prefix}Input"), "output": _ref(f"{prefix}Output")}
    metrics = {"metrics": {"title": "Metrics", "type": "object"}}
    states = ["starting", "processing", "succeeded", "canceled", "failed"]
    place = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    return {
        f"{name}Request": {
            "title": f"{name}Request",
            "type": "object",
            "properties": {"id": texts["id"], "input": _ref(f"{prefix}Input")},
        },
        f"{name}Response": {
            "title": f"{name}Response",
            "type": "object",
            "properties": {**fields, **texts, **times, **metrics},
        },
        "Status": {"title": "Status", "description": "An enumeration.", "enum": states, "type": "string"},
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {"detail": {"title": "Detail", "type": "array", "items": _ref("ValidationError")}},
        },
        "ValidationError": {
            "title": "ValidationError",
            "required": ["loc", "msg", "type"],
            "type": "object",
            "properties": {
                "loc": {"title": "Location", "type": "array", "items": place},
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        },
    }


def _answer(schema: Json, description: str = "Successful Response") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _paths(mode: Mode, *, streaming: bool) -> Ordered:
    """The four paths of one mode."""
    noun, verb, name = mode.noun, mode.verb, title_case(mode.noun)
    invalid = _answer(_ref("HTTPValidationError"), "Validation Error")
    parameter = f"{noun}_id"
    operation: Json = {
        "summary": verb.capitalize(),
        "description": f"Run a single {noun} on the model",
        "operationId": f"{verb}_{noun}s_post",
        "requestBody": {"content": {"application/json": {"schema": _ref(f"{name}Request")}}},
        "responses": {"200": _answer(_ref(f"{name}Response")), "422": invalid},
    }
    if streaming and mode is PREDICT:
        operation["x-cog-streaming"] = True
    identifier = {"title": title_case(parameter), "type": "string"}
    cancel = {
        "summary": "Cancel",
        "operationId": f"cancel_{noun}s__{parameter}__cancel_post",
        "parameters": [{"required": True, "schema": identifier, "name": parameter, "in": "path"}],
        "responses": {"200": _answer({}), "422": invalid},
    }
    root = {"summary": "Root", "operationId": "root__get", "responses": {"200": _answer({})}}
    health = {**root, "summary": "Healthcheck", "operationId": "healthcheck_health_check_get"}
    return Ordered(
        {
            "/": {"get": root},
            "/health-check": {"get": health},
            mode.route: {"post": operation},
            f"{mode.route}/{{{parameter}}}/cancel": {"post": cancel},
        }
    )


def document(signature: Signature, mode: Mode, version: str) -> Json:
    """The whole document of one mode."""
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": version},
        "paths": _paths(mode, streaming=signature.streaming),
        "components": {"schemas": _components(signature, mode)},
    }
