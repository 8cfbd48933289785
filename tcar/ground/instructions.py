"""With which instructions the processor adds, which decides the last digit of a sum.

Wider instructions add up in another order, and a training makes much of the last digit: with those of AVX2 a processor
that has AVX-512 finds the numbers of one that has not.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

# torch, oneDNN, MKL, OpenBLAS, numpy; and what numba compiles is for a Zen 3, without what no other maker's has.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Zen",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "-sse4a",
}


def add_as_avx2(environment: MutableMapping[str, str] = os.environ, about: Path = Path("/proc/cpuinfo")) -> None:
    """Have this process and its children add as AVX2 does, where the processor has AVX-512; what is set stays.

    Counts for libraries that are loaded after it.
    """
    if about.is_file() and "avx512f" in about.read_text(encoding="utf-8", errors="replace"):
        for name, value in AVX2.items():
            environment.setdefault(name, value)
