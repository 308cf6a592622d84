#!/usr/bin/env python3
"""Packs a folder into a .tar.gz that depends on nothing but its files, with the archive's SHA-256 beside it.

    scripts/pack.py FOLDER ARCHIVE --time SECONDS
"""

import argparse
import gzip
import hashlib
import tarfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("folder", type=Path)
parser.add_argument("archive", type=Path)
parser.add_argument("--time", type=int, required=True, help="of every file, in seconds since 1970")
arguments = parser.parse_args()
folder = arguments.folder


def plain(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = arguments.time
    # Who may start a file is all that is kept of its mode; Windows knows no such bit.
    program = entry.isdir() or Path(entry.name).stem == "pixart" and "/" not in entry.name.partition("/")[2]
    entry.mode = 0o755 if program else 0o644
    return entry


partial = arguments.archive.with_name(arguments.archive.name + ".partial")
with open(partial, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in [folder, *sorted(folder.rglob("*"))]:
            name = path.relative_to(folder.parent).as_posix()
            archive.add(path, name, recursive=False, filter=plain)
partial.replace(arguments.archive)
digest = hashlib.sha256(arguments.archive.read_bytes()).hexdigest()
arguments.archive.with_name(arguments.archive.name + ".sha256").write_bytes(
    # Tools that compare hashes take no other line ends.
    f"{digest}  {arguments.archive.name}\n".encode()
)
