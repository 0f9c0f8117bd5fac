"""Random graphs of delegations: Dunlin and python-tuf must find the same targets in the same roles,
asking for the same metadata in the same order."""

import hashlib
import random
import unittest

from tuf.api.metadata import TargetFile

from peer import Client, Python, Repository, Server, names

SEEDS = range(40)
PATHS = ["a", "b/c", "b/c/d", "digits/1/manifest.json", "digits/22/manifest.json", "x.tar.gz"]
PATTERNS = ["*", "*/*", "*/*/*", "digits/*/*", "digits/?/*", "digits/[0-9][0-9]/*", "b/[!x]", "*.tar.*", "b/c/d", "[ab]", "a*"]
ROLES = ["A", "B", "C/ü", "D?", "E"]


def random_repository(chance):
    repository = Repository()
    roles = []
    for _ in range(chance.randrange(1, 10)):
        by = chance.choice([None, *roles])
        name = chance.choice([role for role in ROLES if role != by])
        above = repository.roles[by] if by else repository.targets
        if above.delegations and name in above.delegations.roles:
            continue
        if chance.random() < 0.3:
            digest = hashlib.sha256(chance.choice(PATHS).encode()).hexdigest()
            scope = {"prefixes": [digest[: chance.randrange(1, 4)]]}
        else:
            scope = {"paths": chance.sample(PATTERNS, chance.randrange(0, 4))}
        repository.delegate(name, by=by, terminating=chance.random() < 0.3, **scope)
        roles = list(repository.roles)
    for path in PATHS:
        for role in [None, *roles]:
            if chance.random() < (0.1 if role is None else 0.4):
                # The content says who listed it.
                content = f"{path} by {role}".encode()
                repository.add_target(TargetFile.from_data(path, content, ["sha256"]), content, role)
    repository.publish()
    return repository


class Graphs(unittest.TestCase):
    def test_both_find_the_same(self):
        found = missing = 0
        for seed in SEEDS:
            repository = random_repository(random.Random(seed))
            for path in PATHS:
                with self.subTest(seed=seed, path=path), Server(repository.files) as server:
                    # A path that several list is served by hash, so that each content is there.
                    expected = Python(repository.first_root).download(server, path)
                    theirs = names(server.asked)
                    server.asked.clear()
                    client = Client(repository.first_root)
                    status = client.download(server, path)
                    self.assertEqual(client.target(path), expected)
                    self.assertEqual(status, (1, "unknown_target") if expected is None else (0, ""))
                    self.assertEqual(names(server.asked), theirs)
                found, missing = found + (expected is not None), missing + (expected is None)
        # The graphs are worth something only if both happen often.
        self.assertGreater(min(found, missing), len(SEEDS))


if __name__ == "__main__":
    unittest.main()
