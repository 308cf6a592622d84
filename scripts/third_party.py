#!/usr/bin/env python3
"""What the program is made of: licence texts of all crates in it, and a list of them for machines (an SBOM).

    scripts/third_party.py --target TRIPLE --licences FILE --sbom FILE

Reads `cargo metadata` and the sources that cargo has fetched; asks no network. The SBOM is CycloneDX 1.5 in JSON. Both are the
same for the same Cargo.lock. Fails when a crate names no licence.
"""

import argparse
import json
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("license", "licence", "copying", "notice", "unlicense", "copyright")


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def checksums():
    """SHA-256 of each package of Cargo.lock, by name and version."""
    import tomllib

    packages = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    return {(p["name"], p["version"]): p.get("checksum") for p in packages}


def linked(data):
    """Identifiers of the packages that `pixart-cli` is built from at run time, itself first."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    root = next(p["id"] for p in data["packages"] if p["name"] == "pixart-cli")
    found, edges, queue = [], {}, [root]
    while queue:
        current = queue.pop(0)
        if current in edges:
            continue
        found.append(current)
        edges[current] = sorted(
            dep["pkg"]
            for dep in nodes[current]["deps"]
            if any(kind["kind"] is None for kind in dep["dep_kinds"])
        )
        queue.extend(edges[current])
    return found, edges


def texts(package):
    folder = Path(package["manifest_path"]).parent
    files = [f for f in folder.iterdir() if f.is_file() and f.name.lower().startswith(NAMES)]
    if package.get("license_file"):
        files.append(folder / package["license_file"])
    return sorted({f.resolve() for f in files if f.is_file()})


def expression(package):
    # A stroke is the old way to write "or", with blanks around it or without.
    return " OR ".join(part.strip() for part in (package["license"] or "").split("/"))


def own_text(package):
    """What is said of a package whose licence has no SPDX name."""
    if not package["license_file"]:
        raise SystemExit(f"{package['name']} {package['version']}: found neither license nor license-file in its "
                         "Cargo.toml, expected one of them; leave the crate out or ask its author for terms")
    return f"see {Path(package['license_file']).name} in the package"


def licence(package):
    if package["license"]:
        return {"expression": expression(package)}
    return {"license": {"name": own_text(package)}}


def write_licences(packages, path):
    by_text, named = {}, {}
    without = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        named[name] = expression(package) or own_text(package)
        files = texts(package)
        if not files:
            without.append(f"{name} ({named[name]}): {package['repository'] or 'no address'}")
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            by_text.setdefault(text, []).append(name)
    lines = ["pixart is made from the crates below. Texts that several share stand once.", ""]
    lines += [f"{name}: {terms}" for name, terms in named.items()]
    lines += ["the standard library of Rust: MIT OR Apache-2.0 (https://github.com/rust-lang/rust)"]
    if without:
        lines += ["", "Without a licence text in the package:", *without]
    for text, names in by_text.items():
        lines += ["", "=" * 100, ", ".join(dict.fromkeys(names)), "=" * 100, "", text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_sbom(packages, edges, own, path):
    hashes = checksums()
    reference = {p["id"]: f"pkg:cargo/{p['name']}@{p['version']}" for p in [own, *packages]}

    def component(package, kind):
        made = {
            "type": kind,
            "bom-ref": reference[package["id"]],
            "name": package["name"],
            "version": package["version"],
            "purl": reference[package["id"]],
            "licenses": [licence(package)],
        }
        checksum = hashes.get((package["name"], package["version"]))
        if checksum:
            made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return made

    lock = (ROOT / "Cargo.lock").read_text()
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {"component": component(own, "application")},
        "components": [component(package, "library") for package in packages],
        "dependencies": [
            {"ref": reference[key], "dependsOn": [reference[value] for value in values]}
            for key, values in edges.items()
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--licences", type=Path, required=True)
    parser.add_argument("--sbom", type=Path, required=True)
    arguments = parser.parse_args()

    data = metadata(arguments.target)
    found, edges = linked(data)
    by_id = {package["id"]: package for package in data["packages"]}
    own = by_id[found[0]]
    packages = sorted((by_id[key] for key in found[1:]), key=lambda p: (p["name"], p["version"]))
    nameless = [p["name"] for p in packages if not p["license"] and not p["license_file"]]
    if nameless:
        sys.exit(f"error: these crates name no licence: {', '.join(nameless)}")
    others = [package for package in packages if package["source"]]
    write_licences(others, arguments.licences)
    write_sbom(packages, edges, own, arguments.sbom)
    print(f"{len(others)} crates of others", file=sys.stderr)


if __name__ == "__main__":
    main()
