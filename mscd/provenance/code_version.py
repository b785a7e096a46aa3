"""The code that a job runs: its identity, and a copy of the package as it was when the job was submitted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import subprocess
from pathlib import Path

from mscd import __version__
from mscd.files.atomic import writing

PACKAGE = Path(__file__).parents[1]
# Next to the package in a copy: the original's identity, which the copy, having no git, cannot determine.
COPIED_IDENTITY = PACKAGE.parent / "identity.json"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CodeIdentity:
    """Identifies the code: the package's version, the git commit of its checkout, and the digest of its files.

    commit: 40 hex digits, followed by "+" if the package's Python files differ from that commit, or None if the package
    is not in a git checkout; digest: sha256 (hex) over the names and contents of the Python files.
    """

    version: str
    commit: str | None
    digest: str

    def __str__(self) -> str:
        commit = f"commit {self.commit}" if self.commit else "no git commit"
        return f"mscd {self.version}, {commit}, sources {self.digest[:12]}"


@functools.cache
def code_identity() -> CodeIdentity:
    """Return the identity of this package as of this process's first call; later edits do not affect it."""
    return _identity(_sources())


def copy_package(folder: Path) -> Path:
    """Copy the package with its identity to `folder`/mscd, which must not exist; return the absolute path of `folder`.

    Python runs exactly these files if that path is first in PYTHONPATH and PYTHONSAFEPATH=1 is set (otherwise a package
    in the working directory may come first). Raises UserError if the copy cannot be written.
    """
    sources = _sources()
    with writing(folder, "the code could not be copied here"):
        (folder / PACKAGE.name).mkdir(parents=True)
        for name, content in sources.items():
            target = folder / PACKAGE.name / name
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(content)
        (folder / COPIED_IDENTITY.name).write_text(json.dumps(dataclasses.asdict(_identity(sources)), indent=1) + "\n")
    return folder.resolve()


def _sources() -> dict[str, bytes]:
    """Return the content of the package's Python files by relative name, sorted, without editors' hidden files."""
    names = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    visible = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    return {name: (PACKAGE / name).read_bytes() for name in visible}


def _identity(sources: dict[str, bytes]) -> CodeIdentity:
    """Return the package's identity with the digest of `sources`."""
    if COPIED_IDENTITY.exists():
        original = CodeIdentity(**json.loads(COPIED_IDENTITY.read_text()))
        return dataclasses.replace(original, digest=_digest(sources))
    return CodeIdentity(__version__, _commit(), _digest(sources))


def _digest(sources: dict[str, bytes]) -> str:
    sha = hashlib.sha256()
    for name, content in sources.items():
        sha.update(f"{name}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()


def _commit() -> str | None:
    """Return the commit of the package's checkout (see CodeIdentity), or None; the log says why there is none."""
    # An environment inside another repository is not part of it, so check that git tracks these files.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=all", "--", ":(glob)**/*.py")
    return commit if changes == "" else f"{commit}+"


def _git(*arguments: str) -> str | None:
    """Return git's output in the package's folder, or None, with the reason in the log, if git fails or is missing."""
    # Inside a hook, git's variables point at the hook's repository. A status must not lock the user's index.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    command = ["git", "--no-optional-locks", "-C", str(PACKAGE), *arguments]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except OSError as error:
        log.info("no git commit of %s: %s", PACKAGE, error)
    except subprocess.CalledProcessError as error:
        log.info("no git commit of %s: %s", PACKAGE, " ".join(error.stderr.split()))
    else:
        return ran.stdout.strip()
    return None
