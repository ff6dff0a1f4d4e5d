"""The peers of the store: restic, borg, tar with zstd; each in a scratch directory, nothing of the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.corpus import Corpus

BORG = "borg create --compression zstd,3"
RESTIC = "restic backup --compression auto"
TAR = "tar | zstd -3 --long=27"


def here(program: str) -> bool:
    """Whether this peer is installed."""
    return shutil.which(program) is not None


@dataclass(frozen=True, slots=True)
class Taken:
    """What a directory takes: the sum of the files' lengths, and of the blocks they occupy."""

    apparent: int
    allocated: int

    @property
    def larger(self) -> int:
        """What counts for us."""
        return max(self.apparent, self.allocated)

    def __str__(self) -> str:
        return f"{self.apparent / 1e6:.2f} MB ({self.allocated / 1e6:.2f} allocated)"


def taken(where: Path) -> Taken:
    """Every file under a directory, or a single file."""
    files = [where] if where.is_file() else [path for path in where.rglob("*") if path.is_file()]
    found = [path.stat() for path in files]
    return Taken(sum(stat.st_size for stat in found), sum(stat.st_blocks * 512 for stat in found))


def _run(*command: str, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=3600, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}")


def restic(corpus: Corpus, scratch: Path) -> Taken:
    """A repository of format 2 with one snapshot of the corpus."""
    repository = scratch / "restic"
    environment = {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(repository)}
    _run("restic", "init", "--no-cache", "--repository-version", "2", cwd=corpus.root, **environment)
    _run(
        "restic",
        "backup",
        "--no-cache",
        "--quiet",
        "--compression",
        "auto",
        ".",
        cwd=corpus.root,
        **environment,
    )
    size = taken(repository)
    shutil.rmtree(repository)
    return size


def tar(corpus: Corpus, scratch: Path) -> Taken:
    """One solid stream in the order of time: no access to single messages."""
    listing, packed = scratch / "listing", scratch / "all.tar.zst"
    listing.write_text("".join(f"{name}\n" for name in corpus.names))
    command = f"set -o pipefail; tar c -T {listing} | zstd -q -3 --long=27 -o {packed}"
    _run("bash", "-c", command, cwd=corpus.root)
    size = taken(packed)
    packed.unlink()
    return size


@dataclass(frozen=True, slots=True)
class Borg:
    """One archive made: what the repository takes, and the seconds `borg create` took."""

    size: Taken
    seconds: float


def borg(corpus: Corpus, scratch: Path, *, empty: bool = False) -> Borg:
    """A new repository without encryption (as the store is) with one archive of the corpus, or of nothing."""
    base = scratch / "borg"
    repository = base / "repository"
    base.mkdir()
    environment = {
        "BORG_BASE_DIR": str(base / "home"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    (base / "nothing").mkdir()
    where = base / "nothing" if empty else corpus.root
    _run("borg", "init", "--encryption", "none", str(repository), cwd=corpus.root, **environment)
    began = time.perf_counter()
    _run("borg", "create", "--compression", "zstd,3", f"{repository}::all", ".", cwd=where, **environment)
    seconds = time.perf_counter() - began
    made = Borg(taken(repository), seconds)
    shutil.rmtree(base)
    return made
