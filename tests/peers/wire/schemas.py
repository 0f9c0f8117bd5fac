"""The committed schemas, by channel, for an independent validator."""

import json
from pathlib import Path

import jsonschema

PROTOCOL = Path(__file__).resolve().parents[3] / "protocol"
GOLDEN = PROTOCOL / "tests/golden/messages"


def load():
    """A validator for each channel of JSON messages; each schema is itself held against draft 7."""
    validators = {}
    for file in sorted((PROTOCOL / "schemas").glob("*.schema.json")):
        schema = json.loads(file.read_text())
        jsonschema.Draft7Validator.check_schema(schema)
        validators[file.name.removesuffix(".schema.json")] = jsonschema.Draft7Validator(schema)
    return validators
