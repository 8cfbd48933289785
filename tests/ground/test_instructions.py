"""A processor with AVX-512 adds as one without, for whatever is loaded after it was asked to."""

import os
import subprocess
import sys
from pathlib import Path

from tcar.ground.instructions import AVX2, add_as_avx2

ROOT = Path(__file__).parents[2]


def test_only_a_processor_with_wider_instructions_is_told_and_what_is_set_stays(tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    wide.write_text("flags\t: fpu avx2 avx512f avx512bw\n")
    narrow.write_text("flags\t: fpu avx2\n")
    environment = {"ATEN_CPU_CAPABILITY": "default"}
    for file in (narrow, tmp_path / "nowhere"):  # the second as on macOS
        add_as_avx2(environment, file)
        assert environment == {"ATEN_CPU_CAPABILITY": "default"}
    add_as_avx2(environment, wide)
    assert environment == AVX2 | {"ATEN_CPU_CAPABILITY": "default"}


def test_libraries_that_a_command_loads_use_none_wider():
    code = "from tcar.__main__ import add_as_avx2\nadd_as_avx2()\nimport numpy, torch\n"
    code += "from numpy._core._multiarray_umath import __cpu_features__ as found\n"
    code += "print(torch.backends.cpu.get_cpu_capability(), found.get('X86_V4', False), found.get('AVX512_ICL', False))"
    given = {key: value for key, value in os.environ.items() if key not in AVX2}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    torch_has, *numpy_has = done.stdout.split()
    assert "AVX512" not in torch_has and numpy_has == ["False", "False"]
