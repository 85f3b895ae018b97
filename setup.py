"""What pyproject.toml cannot say: C++ files are compiled side by side.

Owns that alone. The kernels' variants take some twenty seconds each and need nothing of one another.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SideBySide(build_ext):
    def build_extensions(self):
        one_by_one = self.compiler.compile

        def compile_all(sources, **options):
            with ThreadPoolExecutor(PROCESSORS) as pool:
                made = pool.map(lambda source: one_by_one([source], **options), sources)
                return [name for names in made for name in names]

        self.compiler.compile = compile_all
        super().build_extensions()


setup(cmdclass={"build_ext": SideBySide})
