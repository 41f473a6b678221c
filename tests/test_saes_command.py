"""`qnodectl saes add`, `limit` and `remove` change a file beside the site's own, or nothing."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from daemons_support import alter

from qnode.cli.control import qnodectl
from qnode.config import load_site
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    file = prepare(tmp_path / "data", LoopbackConfig(), Staging()).site_files["alice"]
    alter(file, etsi014__saes_file="alice-saes.toml")
    return file


def run(site_file: Path, *arguments: str) -> Result:
    command = ["saes", *arguments, "--config", str(site_file)]
    return CliRunner().invoke(qnodectl, command, standalone_mode=False)


def saes(site_file: Path) -> dict[str, tuple[str, ...]]:
    return {sae.sae_id: sae.peers for sae in load_site(site_file)[0].etsi014.sae}


def test_a_pair_is_added_once_kept_and_removed_and_the_sites_own_file_is_not_touched(site_file: Path) -> None:
    before, own = saes(site_file), site_file.read_bytes()
    added = run(site_file, "add", "new-a", "new-b", "--identity", "urn:new:a")
    assert added.exception is None, added.exception
    assert "At kme-bob, unless it has the pair: qnodectl saes add new-b new-a" in added.output
    assert saes(site_file) == {**before, "new-a": ("new-b",), "new-b": ("new-a",)}
    assert "nothing to change" in run(site_file, "add", "new-a", "new-b").output
    run(site_file, "add", "new-a", "new-c")
    assert saes(site_file)["new-a"] == ("new-b", "new-c")
    assert "removed: new-b" in run(site_file, "remove", "new-b").output
    assert saes(site_file)["new-a"] == ("new-c",)
    assert "removed: new-a, new-c" in run(site_file, "remove", "new-a").output
    assert saes(site_file) == before
    assert site_file.read_bytes() == own


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("add", "kme-alice", "new-b"), "names a node"),
        (("add", "demo-alice", "new-b"), "demo-alice stands there itself"),
        (("add", "new-a", "demo-alice"), "demo-alice is at kme-alice already, not at kme-bob"),
        (("add", "new-a", "new-a"), "new-a is at kme-alice already, not at kme-bob"),
        (("add", "new-a", "new-b", "--peer-kme", "kme-nobody"), "expected 'kme-alice' or 'kme-bob'"),
        (("add", "x" * 600, "new-b"), "expected 1 to 512 characters"),
        (("add", "new-a", "new-b", "--identity", "sae-alice"), "belongs to sae-alice already"),
        (("limit", "demo-alice", "5"), "demo-alice stands there itself: set its keys_per_minute there"),
        (("limit", "nobody", "5"), "has no encryptor nobody"),
        (("limit", "demo-alice", "-5"), "No such option"),
        (("limit", "demo-alice", "many"), "expected a number of keys a minute, or any"),
        (("limit", "demo-alice", "²"), "expected a number of keys a minute, or any"),
        (("remove", "demo-alice"), "demo-alice stands there itself"),
        (("remove", "\x1b[2J"), "has no encryptor \\x1b[2J"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    site_file: Path, arguments: tuple[str, ...], reason: str
) -> None:
    result = run(site_file, *arguments)
    assert reason in str(result.exception)
    assert not site_file.with_name("alice-saes.toml").exists()


def test_a_limit_is_set_changed_and_removed_for_encryptors_of_this_site_alone(site_file: Path) -> None:
    def limits() -> dict[str, int | None]:
        return {sae.sae_id: sae.keys_per_minute for sae in load_site(site_file)[0].etsi014.sae}

    run(site_file, "add", "new-a", "new-b")
    for given, kept in (("10", 10), ("600", 600), ("any", None), ("1", 1)):
        done = run(site_file, "limit", "new-a", given)
        assert done.exception is None, done.exception
        assert limits()["new-a"] == kept
    before = site_file.with_name("alice-saes.toml").read_bytes()
    assert "is at kme-bob: limit it there" in str(run(site_file, "limit", "new-b", "5").exception)
    for beyond in ("0", "1000001", "9" * 40):
        assert "keys_per_minute: expected 1 to 1e+06" in str(
            run(site_file, "limit", "new-a", beyond).exception
        )
    assert site_file.with_name("alice-saes.toml").read_bytes() == before
    run(site_file, "add", "new-a", "new-c")
    assert limits()["new-a"] == 1


def test_a_site_without_a_file_for_encryptors_says_what_to_enter(site_file: Path) -> None:
    alter(site_file, etsi014__saes_file=None)
    assert 'saes_file = "site-saes.toml"' in str(run(site_file, "add", "new-a", "new-b").exception)


@pytest.mark.parametrize("content", ["sae = 5\n", "[[sea]]\n", "[sae]\n", "x = \n", "sae = [1]\n"])
def test_a_damaged_file_of_encryptors_is_named_and_not_overwritten(site_file: Path, content: str) -> None:
    damaged = site_file.with_name("alice-saes.toml")
    damaged.write_text(content)
    assert str(damaged) in str(run(site_file, "add", "new-a", "new-b").exception)
    assert damaged.read_text() == content
    assert tomllib.loads(site_file.read_text())
