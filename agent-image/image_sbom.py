"""The agent image's bill of materials as SPDX 2.3: Debian's packages, the runtime's parts and the agent.

python image_sbom.py --packages STATUS.D --manifest manifest.json --agent agent.pyz [--created TIME] > sbom.spdx.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
NOT_SAID = "NOASSERTION"


def _package(name: str, version: str, purl: str, **more: Any) -> dict[str, Any]:
    return {
        "SPDXID": "SPDXRef-Package-" + re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{version}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": NOT_SAID,
        "filesAnalyzed": False,
        "licenseConcluded": NOT_SAID,
        "licenseDeclared": NOT_SAID,
        "copyrightText": NOT_SAID,
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl},
        ],
        **more,
    }


def debian_packages(folder: Path) -> list[dict[str, Any]]:
    """Of the control files that a folder holds, one per package."""
    found = []
    for path in sorted(folder.iterdir()):
        control = HeaderParser().parsestr(path.read_text(encoding="utf-8"))
        name, version, arch = control["Package"], control["Version"], control["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={arch}&distro=debian-12"
        source = (control["Source"] or name).partition(" ")[0]
        found.append(
            _package(name, version, purl, sourceInfo=f"built from Debian's {source}", supplier="Organization: Debian")
        )
    return found


def runtime_packages(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """llama.cpp, the system libraries that it carries, and CUDA's where it is there."""
    commit = manifest["llama_cpp_commit"]
    found = [
        _package(
            "llama.cpp",
            commit,
            f"pkg:github/ggml-org/llama.cpp@{commit}",
            downloadLocation=f"git+{LLAMA_CPP}@{commit}",
            licenseDeclared="MIT",
            sourceInfo=f"from {manifest['source']}, SHA-256 {manifest['source_sha256']}",
        )
    ]
    sums = {file["path"]: file["sha256"] for file in manifest["files"]}
    for path, sha256 in sums.items():
        kind = path.split("/")[0]
        if kind == "system" or re.match(r"builds/cuda/lib(cudart|cublas)", path):
            version = manifest["glibc"] if kind == "system" else manifest["builds"][0]["toolkit"]
            library = path.rsplit("/", 1)[1]
            found.append(
                _package(
                    library,
                    version,
                    f"pkg:generic/{quote(library)}@{quote(version)}",
                    packageFileName=f"/opt/tokensweep/runtime/{path}",
                    checksums=[{"algorithm": "SHA256", "checksumValue": sha256}],
                    sourceInfo=f"of {manifest['compiler']}" if kind == "system" else "of NVIDIA's CUDA toolkit",
                )
            )
    return found


def bill(packages: list[dict[str, Any]], name: str, created: str) -> dict[str, Any]:
    """The document, which describes every package; its namespace is named by its content."""
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://spdx.org/spdxdocs/{name}-{digest}",
        "creationInfo": {"created": created, "creators": ["Tool: tokensweep-image_sbom.py"]},
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": package["SPDXID"],
            }
            for package in packages
        ],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the image's bill of materials to standard output.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of Debian control files")
    parser.add_argument("--manifest", type=Path, required=True, help="the runtime's")
    parser.add_argument("--agent", type=Path, required=True, help="agent.pyz")
    parser.add_argument("--created", default="1970-01-01T00:00:00Z", help="time of the sources, as SPDX writes it")
    args = parser.parse_args(argv)
    manifest = json.loads(args.manifest.read_text(encoding="utf-8"))
    agent = hashlib.sha256(args.agent.read_bytes()).hexdigest()
    packages = [
        *debian_packages(args.packages),
        *runtime_packages(manifest),
        _package(
            "tokensweep-agent",
            agent[:12],
            f"pkg:generic/tokensweep-agent@{agent[:12]}",
            licenseDeclared="Apache-2.0",
            checksums=[{"algorithm": "SHA256", "checksumValue": agent}],
        ),
    ]
    json.dump(bill(packages, f"tokensweep-agent-{manifest['runtime_id']}", args.created), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
