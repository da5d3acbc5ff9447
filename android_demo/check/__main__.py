"""Compiles, tests and packs the Android library and app on a machine without Android Studio: `make android`.

    python android_demo/check [--cache FOLDER]

Real Kotlin compiler, real Android (API 23), ExecuTorch and ONNX Runtime classes; the JVM tests, over the engine's
real JNI library and ONNX Runtime itself; then resources, D8, alignment, signature and their verification. Each step
prints what it did, or that it was skipped and why. Exits 1 where a step failed; a skipped step is no failure.
Nothing here ran on a phone.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import ort_jvm
from tools import Missing, Tools

ANDROID = Path(__file__).resolve().parents[1]
ROOT = ANDROID.parent
LIBRARY, APP = ANDROID / "handheld" / "src", ANDROID / "app" / "src" / "main"
PACKAGE = "dev.handheld.demo"
MIN_SDK, TARGET_SDK = "24", "35"  # as in the Gradle files


class Failed(Exception):
    """A step that ended badly; the message is what its tool printed."""


class Check:
    """The steps, in order, and what each leaves for the next in `out`."""

    def __init__(self, cache: Path) -> None:
        self.tools = Tools(cache / "tools")
        self.cache = cache
        self.out = cache / "out"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def compile_library(self) -> str:
        sources = sorted((LIBRARY / "main" / "kotlin").rglob("*.kt"))
        self._kotlin(sources, "handheld", [self.tools.executorch_jar, self.tools.onnxruntime / "classes.jar"])
        return f"{len(sources)} files against Android API 23, ExecuTorch's and ONNX Runtime's classes"

    def build_native(self) -> str:
        cmake = self.tools.program("cmake", "cmake")
        build = self.cache / "native"
        source = LIBRARY / "main" / "cpp"
        run([cmake, "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release"])
        run([cmake, "--build", build, "--target", "handheld_flash_jni", "--parallel", "2"])
        made = run([sys.executable, ANDROID / "check" / "pack.py", self.out / "pack"], allowed=True)
        if made.returncode:
            raise Missing(
                f"libhandheld_flash_jni.so is built, but the pack for its tests is not: {last_line(made)}"
            )
        return "libhandheld_flash_jni.so for this machine, and a pack for its tests"

    def run_onnxruntime(self) -> str:
        runtime = self._wheel_runtime()
        folder = self.cache / "onnxruntime"
        cc = self.tools.program("cc", "gcc")
        jni = self.tools.onnxruntime / "jni" / "x86_64" / ort_jvm.JNI
        ort_jvm.prepare(jni, runtime, folder, lambda arguments: run([cc, *arguments]))
        made = run([sys.executable, ANDROID / "check" / "streams.py", self.out / "streams"], allowed=True)
        if made.returncode:
            raise Missing(f"the streamed bundles for the tests are not made: {last_line(made)}")
        return f"its Java library over {runtime.name}, and streamed bundles for the tests"

    def test(self) -> str:
        jars = [*self.tools.junit, *(self._stdlib(name) for name in ("test", "test-junit"))]
        sources = sorted((LIBRARY / "test" / "kotlin").rglob("*.kt"))
        self._need("handheld")
        main = self.out / "handheld"
        friends = ["-Xfriend-paths=" + str(main)]
        self._kotlin(sources, "handheld-test", [main, *jars], on_android=False, more=friends)
        names = [f"dev.handheld.{file.stem}" for file in sources if file.stem.endswith("Test")]
        path = [main, self.out / "handheld-test", self._stdlib("stdlib"), *jars]
        options, skipped = [], []
        if (self.out / "pack" / "expected.json").exists():
            options += [f"-Djava.library.path={self.cache / 'native'}", f"-Dhandheld.pack={self.out / 'pack'}"]
        else:
            skipped.append("the flash engine")
        if (self.out / "streams" / "clips.safetensors").exists():
            path.append(self.tools.onnxruntime / "classes.jar")
            options += [f"-Donnxruntime.native.path={self.cache / 'onnxruntime'}"]
            options += [f"-Dhandheld.streams={self.out / 'streams'}"]
        else:
            skipped.append("ONNX Runtime")
        runner = ["-cp", class_path(path), "org.junit.runner.JUnitCore"]
        # In the module's folder, as Gradle runs them: the fixtures are found from there.
        result = run([self._java(), *options, *runner, *names], folder=LIBRARY.parent)
        count = re.search(r"OK \((\d+) tests\)", result.stdout)
        without = f"; those of {' and '.join(skipped)} skipped" if skipped else ""
        return f"{count[1] if count else '?'} JVM tests{without}"

    def compile_app(self) -> str:
        aapt2 = self.tools.program("aapt2", "aapt")
        self._need("handheld")
        resources, manifest = self.out / "resources.zip", self.out / "AndroidManifest.xml"
        # Gradle takes the package from its own files; aapt2 wants it in the manifest.
        text = (APP / "AndroidManifest.xml").read_text()
        manifest.write_text(text.replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1))
        run([aapt2, "compile", "--dir", APP / "res", "-o", resources])
        levels = ["--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK]
        version = ["--version-code", "1", "--version-name", "0.1.0"]
        java, base = self.out / "r", self.out / "base.apk"
        jar = self.tools.android_jar
        run(
            [
                aapt2,
                "link",
                "-I",
                jar,
                "--manifest",
                manifest,
                "--java",
                java,
                *levels,
                *version,
                "-o",
                base,
                resources,
            ]
        )
        javac = self.tools.program("javac", "openjdk-17-jdk-headless")
        run([javac, "--release", "11", "-d", self.out / "r-classes", *java.rglob("R.java")])
        sources = sorted((APP / "kotlin").rglob("*.kt"))
        self._kotlin(sources, "app", [self.out / "handheld", self.out / "r-classes"])
        return f"{len(sources)} files and the resources"

    def pack(self) -> str:
        zipalign = self.tools.program("zipalign", "zipalign")
        apksigner = self.tools.program("apksigner", "apksigner")
        keytool = self.tools.program("keytool", "openjdk-17-jre-headless")
        self._need("app")
        unsigned, aligned, signed = (self.out / f"{name}.apk" for name in ("unsigned", "aligned", "handheld"))
        shutil.copy(self.out / "base.apk", unsigned)
        libraries = self._native_libraries()
        with zipfile.ZipFile(unsigned, "a") as apk:
            for dex in self._dex():
                apk.write(dex, dex.name)
            for library in libraries:
                apk.write(library, f"lib/arm64-v8a/{library.name}", compress_type=zipfile.ZIP_STORED)
        run([zipalign, "-p", "-f", "4", unsigned, aligned])
        key = self.out / "check.jks"
        store = ["-keystore", key, "-storepass", "handheld", "-alias", "check"]
        run([keytool, "-genkeypair", *store, "-keyalg", "RSA", "-validity", "1", "-dname", "CN=check"])
        run([apksigner, "sign", "--ks", key, "--ks-pass", "pass:handheld", "--out", signed, aligned])
        verified = run([apksigner, "verify", "--verbose", "--min-sdk-version", MIN_SDK, signed]).stdout
        schemes = re.findall(r"Verified using (v\d) scheme .*: true", verified)
        run([zipalign, "-c", "-p", "4", signed])
        badging = run([self.tools.program("aapt", "aapt"), "dump", "badging", signed]).stdout
        if f"launchable-activity: name='{PACKAGE}.LibraryActivity'" not in badging:
            raise Failed(f"the packed app has no launchable activity:\n{badging}")
        if asked := re.findall(r"uses-permission: name='([^']+)'", badging):
            raise Failed(
                f"the packed app asks for permissions, and docs/android.md says that it asks for none: {asked}"
            )
        size = signed.stat().st_size / 1e6
        names = ", ".join(library.name for library in libraries)
        return (
            f"{signed.name}, {size:.0f} MB, signature verified ({', '.join(schemes)}), with {names}. For the "
            "check only: libhandheld_flash_jni.so, which needs the NDK, and libfbjni.so, which Maven's ExecuTorch "
            "brings, are not in it"
        )

    def _native_libraries(self) -> list[Path]:
        et = self.tools.executorch / "third-party" / "android" / "libs" / "executorch" / "arm64-v8a"
        return sorted([*et.glob("*.so"), *(self.tools.onnxruntime / "jni" / "arm64-v8a").glob("*.so")])

    def _dex(self) -> list[Path]:
        folder = self.out / "dex"
        folder.mkdir()
        ours = []
        for name in ("handheld", "app", "r-classes"):
            jar = self.out / f"{name}.jar"
            with zipfile.ZipFile(jar, "w") as archive:
                for file in sorted((self.out / name).rglob("*.class")):
                    archive.write(file, file.relative_to(self.out / name))
            ours.append(jar)
        runtimes = [self.tools.executorch_jar, self.tools.onnxruntime / "classes.jar", self._stdlib("stdlib")]
        d8 = [self._java(), "-Xmx1500m", "-cp", self.tools.d8, "com.android.tools.r8.D8", "--release"]
        run([*d8, "--min-api", MIN_SDK, "--lib", self.tools.android_jar, "--output", folder, *ours, *runtimes])
        return sorted(folder.glob("*.dex"))

    def _kotlin(
        self,
        sources: list[Path],
        name: str,
        libraries: list[Path],
        on_android: bool = True,
        more: list[str] | None = None,
    ) -> None:
        """Compiles to `out/name`; warnings are errors. On Android, Java's classes are Android's too."""
        home = self.tools.kotlin
        compiler = [self._java(), "-Xmx1500m", "-cp", home / "lib" / "kotlin-compiler.jar"]
        main = ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-kotlin-home", home, "-no-reflect", "-no-stdlib"]
        android = ["-no-jdk"] if on_android else []
        path = [*libraries, self._stdlib("stdlib"), *([self.tools.android_jar] if on_android else [])]
        options = ["-Werror", "-jvm-target", "17", "-module-name", name, "-cp", class_path(path), *(more or [])]
        run([*compiler, *main, *android, *options, "-d", self.out / name, *sources])

    def _stdlib(self, name: str) -> Path:
        return self.tools.kotlin / "lib" / f"kotlin-{name}.jar"

    def _java(self) -> str:
        return self.tools.program("java", "openjdk-17-jdk-headless")

    def _wheel_runtime(self) -> Path:
        """ONNX Runtime's library in this environment. Raises Missing where it is not one for the JNI library."""
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise Missing("Android's JNI library for x86-64 loads on Linux on x86-64 only")
        found = importlib.util.find_spec("onnxruntime")
        libraries = sorted(Path(str(found.origin)).parent.glob("capi/libonnxruntime.so.*")) if found else []
        if not libraries:
            raise Missing("onnxruntime is not installed here (pip install onnxruntime)")
        return libraries[-1]

    def _need(self, name: str) -> None:
        if not (self.out / name).exists():
            raise Missing(f"a step before it, which makes {name}, was skipped or failed")


def run(command: list[str | Path], folder: Path = ROOT, allowed: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a tool. Raises Failed with what it printed where it fails and may not."""
    result = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    if result.returncode and not allowed:
        raise Failed(f"{Path(command[0]).name} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return (result.stderr.strip().splitlines() or ["no message"])[-1]


def class_path(jars: list[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def main() -> int:
    parser = argparse.ArgumentParser(prog="android_demo/check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "android", help="for tools and results")
    check = Check(parser.parse_args().cache.resolve())
    steps: list[tuple[str, Callable[[], str]]] = [
        ("library", check.compile_library),
        ("native", check.build_native),
        ("runtime", check.run_onnxruntime),
        ("tests", check.test),
        ("app", check.compile_app),
        ("apk", check.pack),
    ]
    failed = False
    for name, step in steps:
        start = time.monotonic()
        try:
            status, said = "done", step()
        except Missing as error:
            status, said = "SKIPPED", str(error)
        except Failed as error:
            failed, status, said = True, "FAILED", str(error)
        print(f"{name:8} {status:8} {time.monotonic() - start:4.0f} s  {said}", flush=True)
    print("Not run here: the app on a phone or an emulator, and Gradle.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
