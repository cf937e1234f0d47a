"""Which verl is taken for which release, and what is refused."""

from __future__ import annotations

import pytest

from verl_cov.hooks import versions
from verl_cov.hooks.versions import NEWEST, RELEASES, UnsupportedVersion, release_of


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_each_release_is_itself_and_so_are_its_builds(release):
    for build in ("", ".dev0", "+fork", "rc1", ".post1"):
        assert release_of(release.version + build) is release


def test_a_later_patch_release_of_the_newest_line_is_taken_for_the_newest_and_not_called_tested():
    major, minor, patch = map(int, NEWEST.version.split("."))
    later = f"{major}.{minor}.{patch + 3}"
    assert release_of(later) is NEWEST
    assert versions.is_tested(NEWEST.version)
    assert not versions.is_tested(later)
    assert not versions.is_tested(NEWEST.version + "+fork")


@pytest.mark.parametrize(
    ("found", "says", "install"),
    [
        (None, "not installed", NEWEST.version),
        ("0.5.0", "too old", NEWEST.version),
        ("0.10.0", "too new", NEWEST.version),
        ("1.0.0", "too new", NEWEST.version),
        ("0.6.0", "too old", NEWEST.version),
        ("0.7.0", "not among", "0.7.1"),
        ("0.8.1", "not among", "0.9.0"),
    ],
)
def test_what_was_not_tested_is_refused_with_what_to_install(found, says, install):
    with pytest.raises(UnsupportedVersion, match=says) as raised:
        release_of(found)
    assert f"=={install}" in str(raised.value)


def test_a_version_that_is_none_is_named():
    with pytest.raises(UnsupportedVersion, match="'main'"):
        release_of("main")


def test_only_the_legacy_ones_need_a_patch():
    assert [release.version for release in RELEASES if release.legacy] == ["0.6.1", "0.7.1"]
    assert all(release.engine or release.legacy for release in RELEASES)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_a_build_from_between_two_releases_is_told_by_its_parts(release, tmp_path):
    """0.8.0.dev may still be 0.7.1 inside: its legacy actor would train without the hook."""

    def make(folder, like):
        for name, there in (
            ("workers/engine_workers.py", like.engine),
            ("workers/actor/dp_actor.py", like.legacy),
            ("plugin/platform/__init__.py", like.v1),
        ):
            if there:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        return folder

    for other in RELEASES:
        package = make(tmp_path / other.version, other)
        if (other.engine, other.legacy, other.v1) == (release.engine, release.legacy, release.v1):
            versions.check_parts(release, package)
        else:
            with pytest.raises(UnsupportedVersion, match="between two releases"):
                versions.check_parts(release, package)


def test_this_is_the_release_of_the_installed_verl():
    import verl

    assert versions.installed_release() is release_of(verl.__version__)
