"""Any benchmark as on a processor without AVX-512, such as most laptops have.

python -m benchmarks.avx2 end_to_end [options of benchmarks.end_to_end]

PyTorch, oneDNN and vLLM are kept to AVX2 by the variables and the functions by which they choose. MKL takes AVX2 on
processors of AMD anyway; on Intel's its variable holds. The kernels that really run are looked at first: the command
ends if one has more than AVX2. Clock rates and caches stay those of this machine, so ratios carry over better than
seconds. Results are written as `<name>_avx2.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.report import PROCESSOR

LIMITS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
START = Path(__file__).parent / "avx2_start"
PROBE = """
import json, torch
from vllm.platforms import current_platform
current_platform.import_kernels()
square = torch.randn(256, 256)
torch.ops.mkldnn._linear_pointwise(square, square, None, "none", [], "")
libraries = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if "/vllm/_C" in line}
print(json.dumps({"aten": torch.backends.cpu.get_cpu_capability(), "vllm": sorted(libraries)}))
"""


def main() -> None:
    """Check the kernels, then run the benchmark in this process's place."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    path = [str(START), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **LIMITS, PROCESSOR: "avx2", "PYTHONPATH": os.pathsep.join(path)}
    print("kernels:", check(environment), flush=True)
    os.execve(sys.executable, [sys.executable, "-m", f"benchmarks.{sys.argv[1]}", *sys.argv[2:]], environment)


def check(environment: dict[str, str]) -> dict[str, object]:
    """Return the kernels that libraries take under an environment; end this process if they are no AVX2 kernels."""
    verbose = {**environment, "ONEDNN_VERBOSE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    probe = [sys.executable, "-c", PROBE]
    lines = subprocess.run(probe, env=verbose, capture_output=True, text=True, check=True).stdout.splitlines()
    onednn = [line for line in lines if line.startswith("onednn_verbose") and ",exec,cpu," in line]
    found = {**json.loads(lines[-1]), "onednn": sorted({line.split(",")[6] for line in onednn})}
    is_avx2 = found["aten"] == "AVX2" and found["vllm"] == ["_C_AVX2.abi3.so"]
    if not (is_avx2 and onednn and all("avx2" in name for name in found["onednn"])):
        sys.exit(f"not every library was kept to AVX2: {found}")
    return found


if __name__ == "__main__":
    main()
