"""Only the C extension; everything else is in setup.cfg. Where it cannot be built, a mount works without it."""

import shlex
import subprocess

from setuptools import Extension, setup


def fuse(what: str) -> list[str]:
    try:
        return shlex.split(subprocess.check_output(["pkg-config", what, "fuse3"], text=True))
    except (OSError, subprocess.CalledProcessError):
        return []


setup(
    ext_modules=[
        Extension(
            "fusefs.mount._fuseops",
            [f"fusefs/mount/_{name}.c" for name in ("fuseops", "quiet", "listing", "origin", "shown")],
            depends=[f"fusefs/mount/_{name}.h" for name in ("clock", "quiet", "listing", "origin", "shown")],
            extra_compile_args=[*fuse("--cflags"), "-Wall", "-Wextra"],
            extra_link_args=[*fuse("--libs"), "-ldl"],
            optional=True,
        )
    ]
)
