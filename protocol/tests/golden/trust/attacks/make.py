#!/usr/bin/env python3
"""Writes one folder for each attack, with python-tuf: what a device has, what it is offered, and how
it must end. Read by protocol/tests/attacks.rs and by tests/peers/tuf.

    python3 -m venv venv && venv/bin/pip install -r ../../../../../tests/peers/tuf/requirements.txt
    venv/bin/python make.py

<attack>/trusted_root.json  the root that the device enrolled with
<attack>/stored/            metadata that it accepted before, if any
<attack>/repository/        what it is offered: metadata, and targets/ with contents
<attack>/wanted             the target that it is told to install
<attack>/expected           `refused STEP CODE` or `accepted`, then `floor FAMILY N` for floors it must know
<attack>/about              what the attacker does, and with what

The keys come from fixed seeds and are worth nothing: what is written is always the same.
"""

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, SuccinctRoles, TargetFile, Targets, Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

HERE = Path(__file__).parent
LATER = datetime(2099, 1, 1, tzinfo=timezone.utc)
PAST = datetime(2026, 1, 1, tzinfo=timezone.utc)
WANTED = "digits/1/manifest.json"
CONTENT = b"content"


def signer(seed: int) -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def signed(content, signers) -> bytes:
    metadata = Metadata(content)
    for s in signers:
        metadata.sign(s, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def edited(data: bytes, edit) -> bytes:
    """`data` with its envelope edited and not signed again."""
    file = json.loads(data)
    edit(file)
    return json.dumps(file, separators=(",", ":")).encode()


def custom(family="digits", version=1, floor=0, hardware=("x86_64",)) -> dict:
    return {"dunlin": {"family": family, "version": version, "hardware": list(hardware), "rollback_floor": floor, "kind": "model"}}


def target(path=WANTED, content=CONTENT, hashes=("sha256",), **of) -> TargetFile:
    file = TargetFile.from_data(path, content, list(hashes))
    file.unrecognized_fields["custom"] = custom(**of)
    return file


def root(version=1, expires=LATER, roots=(1, 2, 3), threshold=2, snapshot=(6,), timestamp=(7,)) -> Root:
    new = Root(version=version, expires=expires, consistent_snapshot=True)
    for role, seeds in {"root": roots, "targets": (4, 5), "snapshot": snapshot, "timestamp": timestamp}.items():
        for seed in seeds:
            new.add_key(signer(seed).public_key, role)
    new.roles["root"].threshold = threshold
    new.roles["targets"].threshold = 2
    return new


class Repository:
    """Honest in every part until a scenario bends it; all versions are `version`."""

    def __init__(self, version=1):
        self.targets = Targets(version=version, expires=LATER, targets={WANTED: target()})
        self.snapshot = Snapshot(version=version, expires=LATER, meta={})
        self.timestamp = Timestamp(version=version, expires=LATER)
        self.roles = {}
        self.signers = {"targets": [4, 5], "snapshot": [6], "timestamp": [7]}
        self.listed = {}  # instead of what is true; None: not listed
        self.hashed = True  # whether lengths and hashes are listed, too
        self.extra = {}  # files by name
        self.replaced = {}  # files by role, replaced after they were listed
        self.contents = {WANTED: CONTENT}

    def delegate(self, name, paths, seed=10, by=None, terminating=False, targets=(), version=None, prefixes=None):
        """Hands `paths` on to the role `name`, which lists `targets`."""
        above = self.roles[by] if by else self.targets
        above.delegations = above.delegations or Delegations({}, roles={})
        above.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, None if prefixes else list(paths), prefixes)
        above.add_key(signer(seed).public_key, name)
        if name not in self.roles:
            listed = {t.path: t for t in targets}
            self.roles[name] = Targets(version=version or self.targets.version, expires=LATER, targets=listed)
            self.signers[name] = [seed]
        return self.roles[name]

    def files(self) -> dict:
        """Every file by (role, version)."""
        files = {}

        def add(role, content):
            data = signed(content, [signer(s) for s in self.signers[role]])
            files[role, content.version] = self.replaced.get(role, data)
            return MetaFile.from_data(content.version, data, ["sha256"]) if self.hashed else MetaFile(content.version)

        meta = {f"{name}.json": add(name, content) for name, content in {**self.roles, "targets": self.targets}.items()}
        meta.update(self.listed)
        self.snapshot.meta = {name: file for name, file in meta.items() if file}
        self.timestamp.snapshot_meta = self.listed.get("snapshot.json") or add("snapshot", self.snapshot)
        if "snapshot.json" in self.listed:
            del self.snapshot.meta["snapshot.json"]
            add("snapshot", self.snapshot)
        add("timestamp", self.timestamp)
        return files


def quoted(name: str) -> str:
    from urllib.parse import quote
    return quote(name, safe="")


def write(name, about, expected, offered, stored=None, wanted=WANTED, trusted=None, floors=()):
    folder = HERE / name
    (folder / "repository/targets").mkdir(parents=True)
    first = trusted or signed(root(), [signer(1), signer(2)])
    (folder / "trusted_root.json").write_bytes(first)
    if stored:
        (folder / "stored").mkdir()
        for (role, _), data in stored.files().items():
            (folder / "stored" / f"{quoted(role)}.json").write_bytes(data)
    for (role, version), data in offered.files().items():
        file = "timestamp.json" if role == "timestamp" else f"{version}.{quoted(role)}.json"
        (folder / "repository" / file).write_bytes(data)
    for file, data in offered.extra.items():
        (folder / "repository" / file).write_bytes(data)
    everything = [offered.targets, *offered.roles.values()]
    for path, file in ((p, f) for t in everything for p, f in t.targets.items() if p in offered.contents):
        parent, _, last = path.rpartition("/")
        to = folder / "repository/targets" / parent / f"{list(file.hashes.values())[0]}.{last}"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(offered.contents[path])
    (folder / "wanted").write_text(wanted + "\n")
    (folder / "about").write_text(about + "\n")
    lines = [expected, *(f"floor {family} {floor}" for family, floor in floors)]
    (folder / "expected").write_text("\n".join(lines) + "\n")


def roots() -> None:
    def case(name, about, expected, data, **more):
        offered = Repository()
        offered.extra["2.root.json"] = data
        write(name, about, expected, offered, **more)

    two = [signer(1), signer(2)]
    accept = Repository()
    write("none", "Nobody attacks.", "accepted", accept, floors=[("digits", 0)])
    case("root-old-keys-missing", "A new root signed by its own keys alone.", "refused root threshold",
         signed(root(2, roots=(11, 12)), [signer(11), signer(12)]))
    case("root-new-keys-missing", "A new root that its own keys did not sign.", "refused root threshold",
         signed(root(2, roots=(11, 12)), two))
    case("root-key-compromise-below-threshold", "One stolen root key of two.", "refused root threshold",
         signed(root(2), [signer(1)]))
    case("root-skips-a-version", "A root version left out, to hide a revocation in it.", "refused root root-chain",
         signed(root(3), two))
    case("root-repeats-a-version", "The trusted version again, with other content.", "refused root root-chain",
         signed(root(1, expires=PAST), two))
    case("root-expired", "Freeze: the newest root is no longer valid.", "refused root expired",
         signed(root(2, expires=PAST), two))
    doubled = root(2, threshold=2)
    twin = SSlibKey("twin", "ed25519", "ed25519", dict(signer(1).public_key.keyval), {"x-name": "again"})
    doubled.add_key(twin, "root")
    data = signed(doubled, [signer(1)])

    def repeat(file):
        file["signatures"].append({**file["signatures"][0], "keyid": "twin"})
    case("root-one-key-under-two-ids", "One stolen key, listed under two ids, signs for two.", "refused root threshold",
         edited(data, repeat))
    case("root-one-signature-twice", "One stolen key's signature given twice.", "refused root duplicate-signature",
         edited(signed(root(2), [signer(1)]), lambda f: f["signatures"].append(f["signatures"][0])))
    case("root-key-named-twice", "A role that counts one key id twice.", "refused root bad-field",
         edited(signed(root(2), two), lambda f: f["signed"]["roles"]["root"]["keyids"].append(f["signed"]["roles"]["root"]["keyids"][0])))
    case("root-of-another-kind", "Signed metadata of another role in root's place.", "refused root wrong-type",
         signed(Timestamp(2, expires=LATER), two))
    case("root-endless", "Endless data instead of the next root.", "refused root too-large",
         b"[" * 512_001)


def top_level() -> None:
    def case(name, about, expected, bend, stored=None, **more):
        offered = Repository(5 if stored else 1)
        bend(offered)
        write(name, about, expected, offered, stored, **more)

    for role, strangers in {"timestamp": [90], "snapshot": [7], "targets": [4, 6]}.items():
        case(f"{role}-forged", f"Arbitrary install: {role} signed by keys that root does not list for it.",
             f"refused {role} threshold", lambda r, role=role, s=strangers: r.signers.update({role: s}))
    case("targets-key-compromise-below-threshold", "One stolen targets key of two.", "refused targets threshold",
         lambda r: r.signers.update(targets=[4]))
    for role in ("timestamp", "snapshot", "targets"):
        def expire(r, role=role):
            getattr(r, role).expires = PAST
        case(f"{role}-expired", f"Freeze: {role} that is no longer valid is offered for ever.", f"refused {role} expired", expire)

    def back(**versions):
        def bend(r):
            for role, version in versions.items():
                getattr(r, role).version = version
        return bend
    stored = Repository(5)
    case("timestamp-rollback", "An older timestamp, once honestly signed.", "refused timestamp rollback", back(timestamp=4), stored)
    case("snapshot-rollback", "A new timestamp, signed with the stolen key, that names an older snapshot.",
         "refused timestamp rollback", back(timestamp=6, snapshot=4), stored)
    case("targets-rollback", "Stolen online keys that name older targets, once honestly signed.",
         "refused snapshot rollback", back(timestamp=6, snapshot=6, targets=4), stored)
    kept = Repository(5)
    kept.delegate("team", ["team/*/*"])

    def vanish(r):
        back(timestamp=6, snapshot=6)(r)
        r.delegate("team", ["team/*/*"])
        r.listed["team.json"] = None
    case("snapshot-hides-a-role", "Stolen online keys that leave out a role, which could be listed again older.",
         "refused snapshot missing-meta", vanish, kept)
    expired = Repository(5)
    expired.timestamp.expires = expired.snapshot.expires = expired.targets.expires = PAST
    case("rollback-behind-expired", "What the device has is expired; older is offered.", "refused timestamp rollback",
         back(timestamp=4), expired)

    old = Repository(1)
    old.targets.targets[WANTED].unrecognized_fields["custom"] = custom(version=9)

    def replace(role):
        def bend(r):
            r.replaced[role] = next(d for (name, _), d in old.files().items() if name == role)
        return bend
    case("targets-mix-and-match", "Targets of another time than the snapshot names, by hash.", "refused targets hash", replace("targets"))

    def other_version(role):
        def bend(r):
            r.hashed = False
            getattr(r, role).version = 2
            r.replaced[role] = next(d for (name, _), d in old.files().items() if name == role)
        return bend
    old.hashed = False
    case("snapshot-mix-and-match", "A snapshot of another version than the timestamp names.", "refused snapshot version", other_version("snapshot"))
    case("targets-mix-and-match-by-version", "Targets of another version than the snapshot names.", "refused targets version", other_version("targets"))
    case("targets-of-another-kind", "A snapshot in the place of targets, signed by the targets keys.", "refused targets wrong-type",
         lambda r: (setattr(r, "hashed", False), r.replaced.update(targets=signed(Snapshot(1, expires=LATER), [signer(4), signer(5)]))))
    case("timestamp-endless", "Endless data instead of timestamp.", "refused timestamp too-large", lambda r: r.replaced.update(timestamp=b"[" * 16_385))
    case("snapshot-endless", "More bytes than the timestamp lists.", "refused snapshot too-large",
         lambda r: r.replaced.update(snapshot=b"[" * 5_000))
    case("targets-endless", "More bytes than the snapshot lists.", "refused targets too-large", lambda r: r.replaced.update(targets=b"[" * 5_000))
    case("snapshot-cut-off", "A snapshot cut off in the middle.", "refused snapshot length", lambda r: r.replaced.update(snapshot=b"{"))
    case("timestamp-two-meanings", "JSON that two parsers read differently.", "refused timestamp not-json",
         lambda r: r.replaced.update(timestamp=b'{"signed":{},"signed":{},"signatures":[]}'))


def fast_forward() -> None:
    highest = 2**63 - 1
    stolen = Repository(5)
    stolen.timestamp.version = stolen.snapshot.version = highest
    stolen.listed["targets.json"] = MetaFile(highest)
    offered = Repository(6)
    write("fast-forward", "Stolen online keys signed the highest versions: honest ones seem old.", "refused timestamp rollback", offered, stolen)
    offered = Repository(6)
    offered.signers.update(timestamp=[17], snapshot=[16])
    offered.extra["2.root.json"] = signed(root(2, snapshot=(16,), timestamp=(17,)), [signer(1), signer(2)])
    write("fast-forward-recovered", "The same, after the root keys withdrew the stolen keys.", "accepted", offered, stolen)
    offered = Repository(6)
    offered.signers.update(timestamp=[17])
    offered.extra["2.root.json"] = signed(root(2, timestamp=(7, 17)), [signer(1), signer(2)])
    write("fast-forward-key-only-added", "A key that is only added takes no rollback protection away.",
          "refused timestamp rollback", offered, stolen)


def contents() -> None:
    def case(name, about, expected, bend, **more):
        offered = Repository()
        bend(offered)
        write(name, about, expected, offered, **more)

    case("content-replaced", "Malicious mirror: other content than signed.", "refused content hash", lambda r: r.contents.update({WANTED: b"CONTENT"}))
    case("content-endless", "Endless data instead of the target.", "refused content too-large", lambda r: r.contents.update({WANTED: b"x" * 5000}))
    case("content-partial", "Partial bundle: the target is cut off.", "refused content length", lambda r: r.contents.update({WANTED: b"conten"}))

    def sha512(r, honest):
        r.targets.targets[WANTED] = target(hashes=["sha256", "sha512"])
        if not honest:
            r.targets.targets[WANTED].hashes["sha512"] = "00" * 64
    case("content-second-hash", "Content that one of two listed hashes denies.", "refused content hash", lambda r: sha512(r, False))
    case("content-both-hashes", "Nobody attacks: two hashes are listed.", "accepted", lambda r: sha512(r, True))

    def unknown(r):
        r.targets.targets[WANTED].hashes = {"md5": "00" * 16}
    case("content-unknown-hash", "A target listed by a hash that proves nothing.", "refused search bad-field", unknown)
    case("content-not-listed", "Extraneous dependencies: a target that nobody signed.", "refused search unknown-target",
         lambda r: None, wanted="digits/2/manifest.json")

    def own(**of):
        def bend(r):
            r.targets.targets[WANTED].unrecognized_fields["custom"] = custom(**of)
        return bend
    case("device-other-hardware", "Software for other hardware.", "refused device wrong-hardware", own(hardware=["riscv64"]))

    def newer(r):
        r.targets.targets["digits/2/manifest.json"] = target("digits/2/manifest.json", b"two", version=2, floor=2)
    case("device-below-floor", "A listed version that the key holders have since closed.", "refused device below-floor", newer, floors=[("digits", 2)])
    case("device-says-nothing", "A target that does not say what it is.", "refused device missing-custom",
         lambda r: r.targets.targets[WANTED].unrecognized_fields.clear())


def delegated() -> None:
    def case(name, about, expected, bend, stored=None, **more):
        offered = Repository(5 if stored else 1)
        offered.targets.targets.clear()
        bend(offered)
        write(name, about, expected, offered, stored, **more)

    digits = ["digits/*/*"]
    case("delegated", "Nobody attacks: a team signs its family.", "accepted", lambda r: r.delegate("team", digits, targets=[target()]))
    case("delegated-forged", "A delegated role signed by another key than the delegator names.", "refused delegated threshold",
         lambda r: (r.delegate("team", digits, targets=[target()]), r.signers.update(team=[4])))

    def expired(r):
        r.delegate("team", digits, targets=[target()]).expires = PAST
    case("delegated-expired", "Freeze of a delegated role.", "refused delegated expired", expired)
    case("delegated-not-in-snapshot", "A delegated role that the snapshot does not list.", "refused search missing-meta",
         lambda r: (r.delegate("team", digits, targets=[target()]), r.listed.update({"team.json": None})))
    stored = Repository(5)
    stored.delegate("team", digits, targets=[target()])

    def older(r):
        r.timestamp.version = r.snapshot.version = 6
        r.delegate("team", digits, targets=[target()], version=4)
    case("delegated-rollback", "Stolen online keys that name an older version of a delegated role.", "refused snapshot rollback", older, stored)

    def mixed(r):
        r.hashed = False
        r.delegate("team", digits, targets=[target()], version=2)
        r.replaced["team"] = signed(Targets(1, expires=LATER, targets={WANTED: target()}), [signer(10)])
    case("delegated-mix-and-match", "A delegated role of another version than the snapshot names.", "refused delegated version", mixed)

    def replaced(r):
        team = r.delegate("team", digits, targets=[target()])
        data = signed(team, [signer(10)])
        r.replaced["team"] = data.replace(b"2099", b"2098")
    case("delegated-replaced", "Other bytes of a delegated role than the snapshot lists.", "refused delegated hash", replaced)
    case("delegated-endless", "More bytes of a delegated role than the snapshot lists.", "refused delegated too-large",
         lambda r: (r.delegate("team", digits, targets=[target()]), r.replaced.update(team=b"[" * 5_000)))
    case("delegated-outside-its-paths", "A team that signs a family which was not handed to it.", "refused search unknown-target",
         lambda r: r.delegate("team", ["letters/*/*"], targets=[target()]))

    def chain(r):
        r.delegate("team", ["letters/*/*"])
        r.delegate("deputy", digits, 11, by="team", targets=[target()])
    case("delegated-outside-the-chain", "A team hands on what it does not have itself.", "refused search unknown-target", chain)

    def glob(r):
        r.delegate("team", ["digits/*"], targets=[target()])
    case("delegated-star-is-no-slash", "A pattern of one component is meant to cover two.", "refused search unknown-target", glob)

    def terminating(r):
        r.delegate("team", digits, 10, terminating=True)
        r.delegate("other", ["*/*/*"], 11, targets=[target()])
    case("delegated-behind-terminating", "A role signs what a terminating delegation keeps from it.", "refused search unknown-target", terminating)

    def precedence(r):
        r.delegate("first", digits, 10, targets=[target()])
        r.delegate("second", digits, 11, targets=[target(content=b"other")])
    case("delegated-precedence", "Two roles list one target: the first decides.", "accepted", precedence)

    def cycle(r):
        r.delegate("a", ["*/*/*"], 10)
        r.delegate("b", ["*/*/*"], 11, by="a")
        r.roles["b"].delegations = Delegations({}, roles={"a": DelegatedRole("a", [], 1, False, ["*/*/*"])})
        r.roles["b"].add_key(signer(10).public_key, "a")
    case("delegated-cycle", "Two roles that hand on to each other.", "refused search unknown-target", cycle)

    def many(r):
        for n in range(40):
            r.delegate(f"role-{n}", ["*/*/*"], 10)
    case("delegated-without-end", "A search led through ever more roles.", "refused search too-many-delegations", many)

    def shared(r):
        """Both hand on to `deputy`, but only the first names the key that signs for it."""
        r.delegate("a", ["letters/*/*"], 10)
        r.delegate("b", digits, 11)
        r.delegate("deputy", ["letters/*/*"], 12, by="a", targets=[target()])
        r.delegate("deputy", digits, 13, by="b")
    case("delegated-keys-of-another-delegator", "A role counts for whoever names its keys, not for all who name it.",
         "refused delegated threshold", shared)

    def reserved(r):
        r.hashed = False
        entry = {"keyids": [], "name": "timestamp", "paths": ["*"], "terminating": False, "threshold": 1}
        # python-tuf refuses to make such a delegation, so it is told nothing of it.
        targets = Targets(1, expires=LATER, targets={}, unrecognized_fields={"delegations": {"keys": {}, "roles": [entry]}})
        r.replaced["targets"] = signed(targets, [signer(4), signer(5)])
    case("delegated-named-like-timestamp", "A delegated role with the name of a top-level role, to overwrite its file.",
         "refused targets bad-field", reserved)

    def named(r):
        r.delegate("../../etc/x", digits, targets=[target()])
    case("delegated-with-a-path-as-name", "Nobody is hurt: a role's name that is a path elsewhere.", "accepted", named)

    def family(r):
        r.delegate("team", digits, targets=[target(family="letters")])
    case("delegated-other-family", "A team that signs for its paths what claims to be another family.", "refused device wrong-family", family)

    def floor(r):
        foreign = target("letters/1/manifest.json", family="letters", floor=9)
        claimed = target("digits/3/manifest.json", family="letters", floor=9)
        r.delegate("team", digits, targets=[target(), foreign, claimed])
    case("delegated-raises-other-floors", "A team that would lock a family which was not handed to it.", "accepted", floor,
         floors=[("letters", 0), ("digits", 0)])

    def own_floor(r):
        newer = target("digits/2/manifest.json", b"two", version=2, floor=2)
        r.delegate("team", digits, targets=[target(), newer])
    case("delegated-below-floor", "A version that the team itself has closed.", "refused device below-floor", own_floor, floors=[("digits", 2)])


def bins() -> None:
    def repository(fill):
        r = Repository()
        r.targets.targets.clear()
        bins = SuccinctRoles([], 1, 4, "bin")
        r.targets.delegations = Delegations({}, None, bins)
        r.targets.delegations.succinct_roles = bins
        r.targets.add_key(signer(10).public_key)
        for name in bins.get_roles():
            r.roles[name] = Targets(version=1, expires=LATER)
            r.signers[name] = [10]
        fill(r, bins.get_role_for_target(WANTED))
        return r

    write("bins", "Nobody attacks: hash bins.", "accepted", repository(lambda r, b: r.roles[b].targets.update({WANTED: target()})))

    def wrong(r, right):
        other = next(name for name in r.roles if name != right)
        r.roles[other].targets[WANTED] = target()
    write("bins-wrong-bin", "A target in another bin than its hash names.", "refused search unknown-target", repository(wrong))

    r = Repository()
    r.targets.targets.clear()
    r.delegate("team", [], prefixes=["00"], targets=[target()])
    write("prefixes-outside", "A role of hash prefixes signs a target outside of them.", "refused search unknown-target", r)


def main() -> None:
    for folder in HERE.iterdir():
        if folder.is_dir() and (folder / "expected").exists():
            shutil.rmtree(folder)
    roots()
    top_level()
    fast_forward()
    contents()
    delegated()
    bins()


main()
