"""handheld doctor"""

from __future__ import annotations

from .console import say, size, table

LLM_PACKAGES = ("transformers", "tokenizers", "gguf")  # of the extra llm

# Packages that are installed under another name than they are imported by.
DISTRIBUTIONS = {"coreai": "coreai-core"}

EPILOG = "Exits with status 1 if no target can be exported or no runtime can verify one."


def run() -> None:
    """Say what is installed, and what is missing for which target."""
    import importlib.metadata
    import platform
    import shutil
    import sys

    import typer
    from rich.text import Text

    from handheld.convert import TARGETS
    from handheld.convert.coreml.evaluator import REFERENCE_RUNTIMES
    from handheld.models.teachers import TEACHERS
    from handheld.runtime.errors import RuntimeMissing
    from handheld.runtime.flash.engine import load_native
    from handheld.runtime.session import SESSIONS

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    yes, no = Text("yes", "green"), Text("no", "red")
    say(f"handheld {version('handheld')}, Python {platform.python_version()}, {platform.platform()}")
    say(f"{sys.executable}")
    packages = [
        "torch",
        "diffusers",
        "av",
        *sorted({p for t in TARGETS.values() for p in t.packages}),
        "onnxruntime",
        *LLM_PACKAGES,
    ]
    table("Packages", ["package", "version"], [[p, version(p)] for p in packages])

    rows: list[list[str | Text]] = []
    hints = []
    stuck: dict[str, list[str]] = {}
    for target in TARGETS.values():
        missing = target.missing()
        unavailable = SESSIONS[target.runtime].unavailable()
        verified = no if unavailable else yes
        if unavailable and target.runtime in REFERENCE_RUNTIMES and not missing:
            verified = Text("by reference evaluator", "green")
        rows.append(
            [
                target.name,
                target.runtime,
                ", ".join(target.precisions),
                no if missing else yes,
                no if unavailable else yes,
                verified,
            ]
        )
        if missing:
            install = f"pip install 'handheld[{target.extra}]'"
            hints.append(f"{target.name}: export needs {', '.join(missing)}: {install}")
        if unavailable:
            stuck.setdefault(unavailable, []).append(target.name)
    hints += [f"{', '.join(names)}: cannot be run here: {reason}" for reason, names in stuck.items()]
    table("Targets", ["target", "runtime", "precisions", "export", "run here", "verified here"], rows)

    rows = [
        [t.name, t.spec.frame_rule, f"{t.spec.temporal}x{t.spec.spatial}x{t.spec.spatial}", t.licence]
        for t in TEACHERS.values()
    ]
    table("Teachers", ["teacher", "frames", "compression", "licence of the weights"], rows)

    missing = [p for p in LLM_PACKAGES if version(p) == "missing"]
    if missing:
        hints.append(f"language models: packing needs {', '.join(missing)}: pip install 'handheld[llm]'")
    try:
        load_native()
        engine = yes
    except RuntimeMissing as error:
        engine = no
        hints.append(f"language models: {error}")
    table("Language models", ["part", "here"], [["packing", no if missing else yes], ["flash engine", engine]])

    tools = {
        "adb": "measuring on an Android phone",
        "xcrun": "measuring on an iPhone, and building its app, on macOS",
    }
    table("Tools", ["tool", "found", "for"], [[t, shutil.which(t) or "no", what] for t, what in tools.items()])
    say(f"Free disk here: {size(shutil.disk_usage('.').free)}")
    for hint in hints:
        say(hint)
    exports = any(not target.missing() for target in TARGETS.values())
    if not exports or not any(s.unavailable() is None for s in SESSIONS.values()):
        raise typer.Exit(1)
