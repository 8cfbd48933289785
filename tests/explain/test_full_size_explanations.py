"""Integrated gradients of a real clip through DINOv2-S and I3D-R50 fit into the memory of a small machine."""

import json
import subprocess
import sys

LIMIT = 6 * 2**30
SCRIPT = """
import json, resource, sys
import torch
from tcar.data.video import read_segments
from tcar.explain import attribute
from tcar.models.opening import full_size_model

model = full_size_model()
counts = model.config.semantic_frames, model.config.motion_frames
clip = tuple(torch.from_numpy(read_segments(sys.argv[1], n))[None].float().div_(255) for n in counts)
found = attribute(model, clip, 0, 1, method="integrated_gradients", steps=1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
maps = {s: [list(x.shape), bool(x.isfinite().all()), bool((x != 0).any())] for s, x in found.maps.items()}
print(json.dumps({"peak": peak, "maps": maps, "steps": found.steps}))
"""


def test_a_real_clip_at_full_size(shared):
    """tests/benchmarks/full_size_explanations.py measures every method on every clip."""
    video = shared / "clips" / "part_0.mp4"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(video)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["maps"] == {s: [[1, 8, 256, 340], True, True] for s in ("semantic", "motion")}
    assert found["steps"] == 1
    assert found["peak"] < LIMIT
