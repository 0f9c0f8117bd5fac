"""The golden messages of this and of earlier releases hold to the schemas; damaged ones do not."""

import copy
import json
import unittest

import schemas

SEGMENTS = ("event", "log", "sketch")


class Golden(unittest.TestCase):
    def setUp(self):
        self.validators = schemas.load()
        self.messages = {}
        for file in sorted(schemas.GOLDEN.glob("*.json")):
            channel = file.stem.split("-")[0]
            if channel in self.validators:
                self.messages[file.name] = (channel, json.loads(file.read_text()))

    def test_every_channel_has_a_message_that_its_schema_accepts(self):
        self.assertEqual({c for c, _ in self.messages.values()}, set(self.validators))
        for name, (channel, message) in self.messages.items():
            with self.subTest(name):
                self.validators[channel].validate(message)

    def test_a_later_release_may_add_a_field(self):
        for name, (channel, message) in self.messages.items():
            with self.subTest(name):
                self.validators[channel].validate({**message, "field_of_a_later_release": 1})

    def test_a_message_on_another_channel_is_noticed(self):
        for name, (channel, message) in self.messages.items():
            for other in (*SEGMENTS, "metrics"):
                if other != channel:
                    with self.subTest(name, other=other):
                        self.assertFalse(self.validators[other].is_valid(message))

    def test_every_required_field_is_required_and_every_type_is_held(self):
        for name, (channel, message) in self.messages.items():
            validator = self.validators[channel]
            head = validator.schema["allOf"][0]
            # The first reference is the message's own type.
            own = (head.get("allOf", [head])[0])["$ref"].rsplit("/", 1)[-1]
            for field in validator.schema["definitions"][own]["required"]:
                with self.subTest(name, field=field):
                    without = copy.deepcopy(message)
                    del without[field]
                    self.assertFalse(validator.is_valid(without))
                    self.assertFalse(validator.is_valid({**message, field: [None]}))
        nested = {**self.messages["metrics.json"][1], "nested": {"a": 1}}
        self.assertFalse(self.validators["metrics"].is_valid(nested))


if __name__ == "__main__":
    unittest.main()
